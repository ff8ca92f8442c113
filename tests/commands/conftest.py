"""A small model trained once, by the command a user would type, for all tests of the commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from once import once
from runs import TINY, fresh_command


def trained(place: Path) -> None:
    """Train `outputs/digits` for forty steps a stage."""
    done = fresh_command("train", "name=digits", *TINY, "fit.steps=40", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of this process's own with `outputs/digits`, trained."""
    whole = once(tmp_path_factory, "trained-digits", trained)
    return Path(shutil.copytree(whole, tmp_path_factory.mktemp("workplace") / "digits"))
