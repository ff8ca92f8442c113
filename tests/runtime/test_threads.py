"""Threads fit what a container gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import argen.runtime.threads

FILES = [
    ({"cpu.max": "100000 100000\n"}, "1"),
    ({"cpu.max": "20000 100000\n"}, "1"),
    ({"cpu.max": "max 100000\n"}, None),
    ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "3"),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ({"cpu.max": f"{10**9} 100000\n"}, None),
    ({}, None),
]


@pytest.mark.parametrize(("files", "threads"), FILES)
def test_threads_by_quota(
    files: dict[str, str], threads: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(argen.runtime.threads, "CGROUP", tmp_path)
    monkeypatch.setattr(argen.runtime.threads, "_own_cores", lambda: 64)
    # Set first, so that what is tested is taken back too.
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    argen.runtime.threads.fit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "5"
    monkeypatch.delenv("OMP_NUM_THREADS")
    argen.runtime.threads.fit_threads()
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_a_command_is_kept_to_its_quota(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    code = (
        "import sys, pathlib, argen.runtime.threads, argen.runtime.command\n"
        f"argen.runtime.threads.CGROUP = pathlib.Path({str(tmp_path)!r})\n"
        "argen.runtime.threads._own_cores = lambda: 2\n"
        "def main(config):\n"
        "    import torch\n"
        "    print('threads', torch.get_num_threads())\n"
        "sys.argv = ['argen.sample']\n"
        "argen.runtime.command.run(main, 'sample')\n"
    )
    free = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=free, timeout=120
    )
    assert "threads 1\n" in done.stdout, done.stderr
