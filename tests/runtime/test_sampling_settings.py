"""Every command that samples takes every sampling setting, and all take them from one place."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.errors import UserError
from argen.evaluation.sweep import Sweep
from argen.pipeline.settings import SETTINGS, controls, given_settings

CONFIGS = Path(__file__).parents[2] / "configs"


def composed(name: str) -> dict:
    return yaml.safe_load((CONFIGS / name).read_text())


def test_the_settings_are_the_fields_of_guidance_and_filters() -> None:
    guidance = {f.name for f in fields(Guidance)} - {"scale"}
    assert set(SETTINGS) == {"cfg"} | {f"cfg_{n}" for n in guidance} | {
        f.name for f in fields(Filters)
    }


@pytest.mark.parametrize("file", ["sample.yaml", "evaluate.yaml"])
def test_a_command_takes_every_sampling_setting(file: str) -> None:
    config = composed(file)
    assert set(SETTINGS) <= set(config)
    assert all(config[name] is None for name in SETTINGS), "null is what the model was saved with"


def test_a_sweep_takes_every_sampling_setting_and_nothing_else() -> None:
    assert set(composed("evaluate.yaml")["sweep"]) == {*SETTINGS, "part", "parts"}


@pytest.mark.parametrize(
    "file",
    [CONFIGS / "train.yaml", *sorted((CONFIGS / "experiment").rglob("*.yaml"))],
    ids=lambda path: path.stem,
)
def test_defaults_that_a_training_saves_are_sampling_settings(file: Path) -> None:
    samples = (yaml.safe_load(file.read_text()) or {}).get("samples") or {}
    controls({key: value for key, value in samples.items() if key != "per_class"})


def test_a_sweep_of_words_and_lists() -> None:
    sweep = dict.fromkeys(SETTINGS) | {"part": 1, "parts": 2}
    sweep |= {"cfg_schedule": ["linear", "cosine"], "cfg_sub_tokens": [[1.0, 2.0], [2.0, 2.0]]}
    found = Sweep.from_settings(sweep)
    assert found is not None
    assert len(found.points) == 4
    assert found.own == (found.points[1], found.points[3])
    with pytest.raises(UserError, match="Unknown guidance schedule"):
        Sweep.from_settings({**sweep, "cfg_schedule": ["liner"]})
    with pytest.raises(UserError, match="names a value twice"):
        Sweep.from_settings({**sweep, "cfg_sub_tokens": [[1.0], [1.0]]})
    assert Sweep.from_settings({"part": 0, "parts": 1}) is None


def test_only_what_is_given_reaches_the_model() -> None:
    assert given_settings({"cfg": 2.0, "top_k": None, "seed": 3}) == {"cfg": 2.0}
