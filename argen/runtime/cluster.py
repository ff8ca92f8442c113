"""Jobs of a cluster: which rank this process is, and being started again after a checkpoint.

`cluster=slurm` and `cluster=submitit_local` (configs/cluster) let Hydra's submitit launcher start
the command's processes; `srun` may start them too. Each of them learns its rank here, in the
variables that torchrun would have set.
"""

from __future__ import annotations

import logging
import os
import subprocess

log = logging.getLogger(__name__)
# Names of a process's rank, the number of processes, and the rank on its own machine.
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
LOCAL = ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID")
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def launched() -> bool:
    """Whether submitit's launcher started this process."""
    return bool(os.environ.get("SUBMITIT_EXECUTOR"))


def take_rank() -> None:
    """Set torchrun's variables from those of Slurm or submitit, unless torchrun set them."""
    # The batch script itself also knows a number of tasks, but is no task: only steps have an id.
    for names, started in ((SLURM, "SLURM_STEP_ID"), (LOCAL, LOCAL[0])):
        found = [os.environ.get(name) for name in names]
        if started not in os.environ or None in found or "RANK" in os.environ or found[1] == "1":
            continue
        os.environ.update(zip(TORCHRUN, [str(value) for value in found]))
        os.environ.setdefault("MASTER_ADDR", _first_host() if names is SLURM else "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(20000 + _job_number() % 40000))


def start_again() -> bool:
    """Ask Slurm to start this job again, on its first rank; returns whether that was asked."""
    if not launched() or "SLURM_JOB_ID" not in os.environ:
        return False
    if os.environ.get("SLURM_PROCID", "0") != "0":
        return True
    job, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{job}_{task}" if job and task else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", name], check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.error("scontrol requeue %s failed (%s): submit the same command again.", name, error)
        return False
    log.warning("Asked Slurm to start job %s again.", name)
    return True


def _first_host() -> str:
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    if not any(mark in nodes for mark in "[,"):
        return nodes or "127.0.0.1"
    done = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], check=True, capture_output=True, text=True
    )
    return done.stdout.split()[0]


def _job_number() -> int:
    name = os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID", "0")
    return int("".join(c for c in name if c.isdigit()) or 0)
