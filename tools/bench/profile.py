"""Where a call's time goes: the operations that take most of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

SHOWN = 8


def profile_of(call: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Return the shares of the busy time that the largest operations take, largest first.

    Args:
        call: the work, done once; a profiler slows it down, but the shares little.
        device: a GPU's kernels are counted there, else the CPU's operations.
    """
    cuda = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds) as found:
        call()
    times = {
        event.key: float(event.self_device_time_total if cuda else event.self_cpu_time_total)
        for event in found.key_averages()
    }
    total = sum(times.values()) or 1.0
    largest = sorted(times.items(), key=lambda item: -item[1])[:SHOWN]
    return {name[:60]: round(time / total, 3) for name, time in largest}
