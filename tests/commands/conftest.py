"""A small model trained once, by the command a user would type, for all tests of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import TINY, command


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `outputs/digits`, trained for forty steps a stage."""
    place = tmp_path_factory.mktemp("workplace")
    done = command("train", "name=digits", *TINY, "fit.steps=40", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return place
