"""Presets in folders answer to their flat names wherever a name is read."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from argen.errors import UserError
from argen.runtime.presets import config_dir, preset, preset_names, preset_path, shown_name


@pytest.mark.parametrize("group", ["generator", "tokenizer"])
def test_every_grouped_preset_has_one_flat_name(group):
    names = preset_names(group)
    assert len(set(names)) == len(names)
    files = {preset_path(group, name) for name in names}
    assert files == set((config_dir() / group).rglob("*.yaml"))
    for name in names:
        assert preset(group, name) == preset(group, shown_name(group, name))


@pytest.mark.parametrize("written", ["var/d16", "var_d16"])
def test_hydra_finds_both(written, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"# @package _global_\ndefaults:\n  - override /generator: {written}\n"
    )
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        typed = compose("train", overrides=[f"generator={written}", "generator.layers=3"])
    assert typed.generator.dim == 1024
    assert typed.generator.layers == 3
    (tmp_path / "experiment").mkdir()
    (tmp_path / "mine.yaml").rename(tmp_path / "experiment" / "mine.yaml")
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        words = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
        assert compose("train", overrides=words).generator.dim == 1024


def test_what_is_missing_is_told():
    with pytest.raises(UserError, match="Did you mean 'var_d16'"):
        preset("generator", "var_d61")
