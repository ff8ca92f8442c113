"""The commands of the README are real: each composes, and CI runs the one that runs the tests."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from argen.cli import PLAIN
from argen.models import lines

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S))
COMMANDS = re.findall(r"python -m argen\.(\w+)([^#\n]*)", BLOCKS)


@pytest.mark.parametrize(("name", "words"), COMMANDS, ids=[f"{n}{w}"[:60] for n, w in COMMANDS])
def test_commands_compose(name: str, words: str) -> None:
    overrides = shlex.split(words)
    if "--cfg" in overrides:
        del overrides[overrides.index("--cfg") :]
    if name in PLAIN:
        assert list(lines(overrides))
        return
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose(config_name=name, overrides=overrides)
    for override in overrides:
        key, value = override.split("=", 1)
        if "." in key or key in ("model", "out", "name", "source"):
            assert str(config[key.split(".")[0]]) != ""
        assert value


def test_the_two_commands_are_there() -> None:
    assert "pip install -e . && python -m argen.train experiment=quickstart" in README
    assert 'pip install -e ".[dev]" && pytest' in README


def test_ci_runs_the_very_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert 'pip install -e ".[dev]"' in script
    assert re.search(r"^\s*pytest$", script, re.M)


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.search(r"\b(TODO|TBD|[A-Z]+_TABLE|LIMITS)\b", README)
