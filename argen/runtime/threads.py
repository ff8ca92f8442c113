"""How many CPU threads to use: no more than the machine gives this process.

Torch starts a thread a core. In a container with a quota these share fewer cores, and every
parallel operation waits for threads that are not running.
"""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def fit_threads() -> None:
    """Keep torch, not yet imported, to the cores of a quota; OMP_NUM_THREADS, if set, stays."""
    cores = _quota_cores(CGROUP)
    if "OMP_NUM_THREADS" not in os.environ and cores is not None and cores < _own_cores():
        os.environ["OMP_NUM_THREADS"] = str(cores)


def _own_cores() -> int:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota_cores(cgroup: Path) -> int | None:
    """Return the cores that the control group may keep busy, None where there is no limit.

    Args:
        cgroup: where the control groups are mounted, of either version.
    """
    try:
        if (cgroup / "cpu.max").is_file():
            given, period = (cgroup / "cpu.max").read_text().split()
        else:
            given = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        return max(1, round(float(given) / float(period))) if float(given) > 0 else None
    except (OSError, ValueError):  # no such files, or the word `max`
        return None
