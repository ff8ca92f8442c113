"""Commands as a user types them, on models that train in seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import forked
import pytest

TINY = [
    "data=digits",
    "data.image_size=16",
    "tokenizer=tiny_vq",
    "generator=tiny_gpt",
    "trainer=cpu",
    "evaluate=null",
    "codes.views=1",
    "samples.per_class=2",
    "fit.val_every=20",
    "fit.save_every=10",
]


def command(name: str, *overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run what `python -m argen.NAME` runs, in a process and a directory of its own."""
    return forked.run(f"argen.{name}", *overrides, cwd=cwd)


def fresh_command(name: str, *overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m argen.NAME` as a user's shell does, imports and all."""
    return subprocess.run(
        [sys.executable, "-m", f"argen.{name}", *overrides],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    """Run `argen WORDS` in this process; returns exit status, output and errors."""
    from hydra.core.global_hydra import GlobalHydra

    from argen import cli

    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["argen", *words])
    status = 0
    try:
        cli.main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err
