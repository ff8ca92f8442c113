"""Values of all ranks of a running process group; without one there is a single rank."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist


def running() -> bool:
    """Whether a process group is running."""
    return dist.is_available() and dist.is_initialized()


def place() -> tuple[int, int]:
    """Return this process's rank and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if running() else (0, 1)


def first() -> bool:
    """Whether this is the first process, also before the group is there."""
    if running():
        return dist.get_rank() == 0
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def leave() -> None:
    """Wait for all, then end the group: what follows is for the first process alone."""
    if running():
        dist.barrier()
        dist.destroy_process_group()


def gather(values: list[Any]) -> list[Any]:
    """Return the lists of all ranks joined, in order of rank, on every rank."""
    if not running():
        return values
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def total(values: list[int]) -> list[int]:
    """Return the sums over all ranks of each entry."""
    return [sum(column) for column in zip(*gather([values]))]


def wait() -> None:
    """Wait until every rank is here."""
    if running():
        dist.barrier()
