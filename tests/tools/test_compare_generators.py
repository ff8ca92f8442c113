"""The comparison of generators trains, scores against the baseline, and skips what is done."""

import json
from pathlib import Path

import forked
import pytest
import yaml
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "configs" / "experiment" / "compare"


def run(*words, cwd):
    return forked.run(str(ROOT / "tools" / "compare_generators.py"), *words, cwd=cwd)


@pytest.mark.slow
def test_a_family_is_trained_scored_and_not_trained_again(tmp_path):
    words = ["only=[nar]", f"out={tmp_path}/made", f"runs={tmp_path}/runs", "samples=8"]
    words += ["fit.steps=2", "codes.views=1", "nar:generator.layers=1"]
    first = run(*words, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    nar, unigram = (
        json.loads((tmp_path / "made" / f"{name}.json").read_text()) for name in ("nar", "unigram")
    )
    assert nar["factor_over_unigram"] == unigram["fd_lite"] / nar["fd_lite"]
    assert (nar["passes_per_image"], nar["steps"], nar["samples"]) == (15, 2, 8)
    assert not nar["comparable"]
    assert nar["bits_per_code_heldout"] > 0
    assert (tmp_path / "runs" / "nar" / "samples.png").is_file()
    again = run(*words, cwd=tmp_path)
    assert "step" not in again.stdout
    assert again.stdout.count("see ") == 2
    timed = run(*words, "speed=true", "speed_images=4", "speed_rounds=1", cwd=tmp_path)
    assert timed.returncode == 0, timed.stderr
    assert json.loads((tmp_path / "made" / "nar.json").read_text())["images_per_second"] > 0


def test_unknown_families_are_refused(tmp_path):
    refused = run("only=[gtp]", cwd=tmp_path)
    assert refused.returncode == 1
    assert "no family 'gtp'; choose from elm, gpt" in refused.stderr


def test_every_family_has_an_experiment_with_steps_of_its_own():
    from compare_generators import FAMILIES

    names = {path.stem for path in EXPERIMENTS.glob("*.yaml")}
    assert names == {*FAMILIES, "fsq", "kl", "pyramid"}
    for name in FAMILIES:
        text = (EXPERIMENTS / f"{name}.yaml").read_text()
        assert OmegaConf.create(yaml.safe_load(text)).fit.steps > 0
