"""A killed run goes on where it was, and ends as if it had never been killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from runs import TINY, command
from safetensors.torch import load_file

from argen.checkpoint import read_json


def test_kill_and_resume_gives_the_same_model(workplace: Path, tmp_path: Path) -> None:
    words = ["train", "name=digits", *TINY, "fit.steps=40"]
    process = subprocess.Popen(
        [sys.executable, "-m", f"argen.{words[0]}", *words[1:]],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    last = tmp_path / "outputs" / "digits" / "generator" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 300
    while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run = tmp_path / "outputs" / "digits"
    assert last.is_file(), "the run ended before it could be killed"
    assert not (run / "generator" / "finished.json").exists()

    again = command(*words, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "tokenizer: finished" in again.stdout
    assert "generator: going on from" in again.stdout

    whole = workplace / "outputs" / "digits"
    for part in ("tokenizer", "generator"):
        expected = load_file(whole / "model" / f"{part}.safetensors")
        found = load_file(run / "model" / f"{part}.safetensors")
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert (value == found[key]).all(), f"{part}: {key} differs after a resume"
    assert read_json(run / "metrics.json")["name"] == "digits"
