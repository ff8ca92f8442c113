"""Values of all ranks of a running process group; without one there is a single rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from argen.runtime.device import pick_device

LONGEST_WAIT = timedelta(hours=6)  # for ranks that got less to do


def running() -> bool:
    """Whether a process group is running."""
    return dist.is_available() and dist.is_initialized()


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if running() else (0, 1)


def own_device(name: str) -> torch.device:
    """Return this process's device: one GPU a rank under torchrun."""
    device = pick_device(name)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextmanager
def process_group(name: str) -> Iterator[None]:
    """Join the other ranks under torchrun for as long as the context lasts.

    Args:
        name: of the device, as `pick_device` takes it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    device = own_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Gathered objects are plain values: gloo carries them on either side.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=LONGEST_WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_rank_zero() -> bool:
    """Whether this is the first process, also before the group is there."""
    if running():
        return dist.get_rank() == 0
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def destroy_process_group() -> None:
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


def all_sum_ints(values: list[int]) -> list[int]:
    """Return the sums over all ranks of each entry."""
    return [sum(column) for column in zip(*gather([values]))]


def barrier() -> None:
    """Wait until every rank is here."""
    if running():
        dist.barrier()
