"""Old names of settings: taken on the command line and in YAML, with a warning."""

from __future__ import annotations

import pytest

from argen.runtime.renamed import KEYS, VALUES, renamed_settings, renamed_word


@pytest.mark.parametrize(("old", "new"), sorted(KEYS.items()))
@pytest.mark.parametrize("prefix", ["", "+", "++", "stages.generator."])
def test_every_old_key_of_the_command_line(old, new, prefix):
    new_prefix = "++" if prefix == "+" else prefix  # what had to be added may be there now
    with pytest.warns(FutureWarning, match=new):
        assert renamed_word(f"{prefix}{old}=7") == f"{new_prefix}{new}=7"
    assert renamed_word(f"{prefix}{new}=7") == f"{new_prefix}{new}=7"


@pytest.mark.parametrize(("key", "old", "new"), [(*place, new) for place, new in VALUES.items()])
def test_every_old_value(key, old, new):
    with pytest.warns(FutureWarning, match=f"{key}={new}"):
        assert renamed_word(f"{key}={old}") == f"{key}={new}"
    group, name = key.split(".")
    with pytest.warns(FutureWarning, match=f"{key}={new}"):
        assert renamed_settings({group: {name: old}}) == {group: {name: new}}


def test_what_lies_below_an_old_key_follows_it():
    with pytest.warns(FutureWarning, match="objective.image_terms"):
        word = renamed_word("objective.perceptual.lpips.vgg16=a.b=c")
    assert word == "objective.image_terms.lpips.vgg16=a.b=c"
    assert renamed_word("objective.perceptually=1") == "objective.perceptually=1"
    theirs, ours = {"lpips": {"vgg16": "mine"}}, {"lpips": {"size": 64, "vgg16": None}, "x": 1}
    config = {"objective": {"perceptual": theirs, "image_terms": ours}}
    with pytest.warns(FutureWarning, match="objective.image_terms"):
        renewed = renamed_settings(config)
    terms = {"lpips": {"size": 64, "vgg16": "mine"}, "x": 1}
    assert renewed == {"objective": {"image_terms": terms}}


def test_a_plus_is_taken_whether_the_key_is_there_or_not():
    assert renamed_word("+optim.eps=1e-3") == "++optim.eps=1e-3"
    assert renamed_word("+experiment=mine") == "+experiment=mine"
    assert renamed_word("+optim@stages.generator.optim=rar") == "+optim@stages.generator.optim=rar"


def test_words_that_are_not_settings_stay():
    assert renamed_word("text=fit.recompute=true") == "text=fit.recompute=true"
    assert renamed_word("--help") == "--help"


def test_a_users_yaml_with_old_keys_wins_over_the_defaults():
    config = {
        "fit": {"max_skipped": 10, "most_skipped": 3, "steps": 5},
        "stages": {"generator": {"fit": {"most_skipped": 4}}},
    }
    with pytest.warns(FutureWarning, match="fit.max_skipped"):
        renewed = renamed_settings(config)
    assert renewed["fit"] == {"max_skipped": 3, "steps": 5}
    assert renewed["stages"]["generator"]["fit"] == {"max_skipped": 4}
    assert config["fit"]["most_skipped"] == 3  # what was given is not changed
