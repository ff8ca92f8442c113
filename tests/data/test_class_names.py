"""Words find their classes, and classes of a model and of data are matched by name."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import torch

from argen.data.class_names import find_class, match_classes
from argen.data.images import ImageSource, MemoryImages
from argen.errors import UserError
from argen.evaluation.sample_files import labels_in, open_samples
from argen.pipeline.prompts import class_ids
from argen.recipes.captions import evaluation_prompts
from argen.recipes.sample import as_words

FOLDERS = ("1", "10", "2")  # in the order in which a data set of folders numbers them


def test_a_number_is_an_id_and_a_word_a_name() -> None:
    assert class_ids([1], FOLDERS, count=3) == [1]
    assert class_ids(torch.tensor([2, 0]), FOLDERS, count=3) == [2, 0]
    assert class_ids(list(np.array([2, 0])), FOLDERS, count=3) == [2, 0]
    assert class_ids(["10"], FOLDERS, count=3) == [1]
    assert class_ids("0", FOLDERS, count=3) == [0], "no class is called 0"
    with pytest.raises(UserError, match="Class 10 is outside 0 to 2"):
        class_ids([10], FOLDERS, count=3)
    # Ids that were found are ids still when they are asked for again.
    ids = class_ids("all", FOLDERS, count=3)
    assert class_ids(ids, FOLDERS, count=3) == [0, 1, 2]


def test_a_command_line_takes_numbers_as_names_where_classes_are_called_so() -> None:
    assert class_ids(as_words([10, "2", 0]), FOLDERS, count=3) == [1, 2, 0]
    assert class_ids(as_words(10), FOLDERS, count=3) == [1]
    assert as_words("all") == "all"


def test_names_that_differ_by_case_or_by_the_way_to_write_an_accent() -> None:
    names = ("Polish", "polish", "caf\u00e9", "dog")
    assert find_class("polish", names) == 1
    assert find_class("Polish", names) == 0
    assert find_class("DOG", names) == 3
    assert find_class(unicodedata.normalize("NFD", "CAF\u00c9"), names) == 2
    assert find_class("cat", names) is None
    with pytest.raises(UserError, match=r"give the id, 0 \('Polish'\), 1 \('polish'\)"):
        find_class("POLISH", names)
    with pytest.raises(UserError, match=r"0 \('crane'\), 1 \('crane'\)"):
        class_ids("crane", ("crane", "crane"), count=2)


def test_classes_are_matched_by_name_or_refused() -> None:
    assert match_classes(("cat", "dog", "eel"), ("Eel", "cat", "dog"), count=3) == [1, 2, 0]
    assert match_classes((), ("a", "b"), count=2) == [0, 1]
    assert match_classes(("a", "b"), ("0", "1"), count=2) == [0, 1]
    with pytest.raises(UserError, match=r"the data lacks 'dog'; the model lacks 'eel'"):
        match_classes(("cat", "dog"), ("cat", "eel"), count=2)
    with pytest.raises(UserError, match="3 classes and the data 2"):
        match_classes((), ("a", "b"), count=3)


class Named:
    """A pipeline as far as prompts are concerned: its classes and its conditioner."""

    class_names = ("cat", "dog", "eel")

    class generator:
        conditioner = None

    def labels(self, classes: str) -> list[int]:
        return [0, 1, 2]


def test_a_score_compares_each_sample_with_the_class_of_its_name() -> None:
    names = [str(i) for i in range(3)]
    images = MemoryImages(torch.zeros(3, 3, 2, 2, dtype=torch.uint8), torch.arange(3), names)
    source = ImageSource("s", ("eel", "cat", "dog"), (2, 2), images, images)
    prompts, labels = evaluation_prompts(Named(), source, 7)  # type: ignore[arg-type]
    asked_for = [Named.class_names[i] for i in prompts]
    assert [source.classes[i] for i in labels.tolist()] == asked_for
    assert sorted(set(asked_for)) == ["cat", "dog", "eel"]


def test_samples_with_names_are_labelled_by_them(tmp_path) -> None:
    pixels = np.zeros((3, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=pixels, labels=[0, 1, 0], names=["cat", "dog", "cat"])
    samples = open_samples(tmp_path / "a.npz")
    assert labels_in(samples, ("dog", "cat")).tolist() == [1, 0, 1]
    assert labels_in(samples, ("dog", "emu")) is None
    np.savez(tmp_path / "b.npz", arr_0=pixels, labels=[0, 1, 0])
    assert labels_in(open_samples(tmp_path / "b.npz"), ("dog", "cat")).tolist() == [0, 1, 0]
