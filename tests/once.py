"""Directories that all test processes of a run share: made by one of them, found by the others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return the directory `name` of this run, made by `make(directory)` in whoever came first.

    Nobody may write into it afterwards: a test that does takes a copy.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # that of the process which started the workers
    place, done = shared / name, shared / f"{name}.made"
    with FileLock(shared / f"{name}.lock"):
        if not done.is_file():
            shutil.rmtree(place, ignore_errors=True)  # half made by a test that failed
            place.mkdir()
            make(place)
            done.touch()
    return place
