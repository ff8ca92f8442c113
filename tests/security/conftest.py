"""A sound model to tamper with, a canary that hostile files try to plant, and commands."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "written_by_0_1"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a model directory of one's own: tokenizer and generator of a few thousand weights."""
    place = tmp_path / "model"
    shutil.copytree(GOLDEN / "expected", place)
    return place


@pytest.fixture
def edited(model: Path) -> Callable[..., Path]:
    """Return a function that replaces entries of the model's config.json, `a.b` below `a`."""

    def edit(**entries: Any) -> Path:
        config = json.loads((model / "config.json").read_text())
        for key, value in entries.items():
            *path, last = key.split("__")
            node = config
            for part in path:
                node = node[part]
            node[last] = value
        (model / "config.json").write_text(json.dumps(config))
        return model

    return edit


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Return a file that no hostile input may bring into being."""
    return tmp_path / "canary"


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """Return a function that runs `argen WORDS` here; it gives the exit status and the errors."""
    from hydra.core.global_hydra import GlobalHydra

    from argen import cli

    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["argen", *words])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, capsys.readouterr().err

    return call
