"""A run always has a whole checkpoint: after kills, on full disks, with weights gone wrong."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from argen.training.checkpoints import (
    LAST,
    PREVIOUS,
    SafeCheckpointIO,
    damage_of,
    newest_valid,
    not_finite,
)


def state(step: int, value: float = 0.5) -> dict:
    return {"global_step": step, "state_dict": {"weight": torch.full((1000,), value)}}


def step_of(path: Path | None) -> int:
    assert path is not None
    return torch.load(path, weights_only=True)["global_step"]


def test_the_one_before_is_kept_and_taken_when_the_last_is_damaged(tmp_path: Path) -> None:
    files = SafeCheckpointIO()
    for step in (1, 2, 3):
        files.save_checkpoint(state(step), tmp_path / LAST)
    assert newest_valid(tmp_path) == (tmp_path / LAST, [])
    assert (step_of(tmp_path / LAST), step_of(tmp_path / PREVIOUS)) == (3, 2)
    whole = (tmp_path / LAST).read_bytes()
    (tmp_path / ".last.ckpt.7.tmp").write_bytes(whole[:50])
    for damaged in (whole[:-40], whole[:400] + b"\x00\xff" + whole[402:], b""):
        (tmp_path / LAST).write_bytes(damaged)
        found, why = newest_valid(tmp_path)
        assert step_of(found) == 2
        assert len(why) == 1
        assert "damaged" in why[0]
        assert not list(tmp_path.glob(".*.tmp"))
    # A damaged file never takes the place of the whole one.
    files.save_checkpoint(state(4), tmp_path / LAST)
    assert (step_of(tmp_path / LAST), step_of(tmp_path / PREVIOUS)) == (4, 2)


@pytest.mark.parametrize("moment", ["os.fsync", "os.link", "os.replace"])
def test_a_kill_while_writing_leaves_a_whole_checkpoint(tmp_path: Path, moment: str) -> None:
    script = f"""
import os, signal, torch
from argen.training.checkpoints import SafeCheckpointIO
def state(step): return {{"global_step": step, "state_dict": {{"weight": torch.ones(1000)}}}}
files = SafeCheckpointIO()
files.save_checkpoint(state(1), "last.ckpt")
{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.save_checkpoint(state(2), "last.ckpt")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=120)
    assert done.returncode == -signal.SIGKILL
    found, _ = newest_valid(tmp_path)
    assert step_of(found) == 1
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_full_disk_costs_no_checkpoint(tmp_path: Path) -> None:
    script = """
import resource, signal, sys, torch, logging
from argen.training.checkpoints import SafeCheckpointIO
logging.basicConfig(stream=sys.stdout)
def state(step, n): return {"global_step": step, "state_dict": {"weight": torch.ones(n)}}
files = SafeCheckpointIO()
files.save_checkpoint(state(1, 10), "last.ckpt")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as a full disk does, writes then fail
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
files.save_checkpoint(state(2, 1_000_000), "last.ckpt")
files.save_checkpoint(state(3, 10), "last.ckpt")
print("refused", files.refused)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "step 2: the checkpoint could not be written" in done.stdout
    assert "refused 1" in done.stdout
    assert step_of(tmp_path / LAST) == 3
    assert step_of(tmp_path / PREVIOUS) == 1
    assert sorted(os.listdir(tmp_path)) == [LAST, PREVIOUS]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_gone_wrong_are_not_written(
    tmp_path: Path, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    files = SafeCheckpointIO()
    files.save_checkpoint(state(1), tmp_path / LAST)
    with caplog.at_level(logging.ERROR):
        files.save_checkpoint(state(2, value), tmp_path / LAST)
    assert "step 2: no checkpoint written, weight is not finite" in caplog.text
    assert step_of(newest_valid(tmp_path)[0]) == 1


def test_a_sum_that_overflows_is_no_damage() -> None:
    assert not_finite({"w": torch.full((4,), 3e38)}) is None
    assert not_finite({"i": torch.arange(3), "w": torch.tensor([1.0, float("nan")])}) == "w"


def test_a_checkpoint_is_whole(tmp_path: Path) -> None:
    torch.save(state(1), tmp_path / "a.ckpt")
    assert damage_of(tmp_path / "a.ckpt") is None
    assert newest_valid(tmp_path) == (None, [])
