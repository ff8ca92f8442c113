"""What the machine is and what it can reach at best: memory bandwidth and rates of products."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from argen.runtime.flops import peak_flops

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


def machine(device: torch.device) -> dict[str, Any]:
    """Return what tables name the machine by."""
    facts = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "flags": _flags(),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "load_1min": round(os.getloadavg()[0], 2),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory_gb"] = round(properties.total_memory / 2**30, 1)
        facts["cuda"] = torch.version.cuda
    return facts


def ceilings(device: torch.device, *, rounds: int = 5) -> dict[str, float]:
    """Return bytes a second read from memory and FLOPs a second of products, the best of a few.

    On a GPU, bandwidth counts bytes read plus written of a copy; on a CPU, where writing a line
    also reads it, bytes of the faster of a sum and a matrix-vector product.
    """
    cuda = device.type == "cuda"
    found = {"bytes_per_second": _bandwidth(device, rounds)}
    n = 8192 if cuda else 2048
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        best = _best(partial(torch.matmul, a, b), device, rounds)
        name = str(dtype).removeprefix("torch.")
        found[f"{name}_flops_per_second"] = 2 * n**3 / best
        peak = peak_flops(torch.cuda.get_device_name(device), dtype) if cuda else None
        if peak is not None:
            found[f"{name}_peak_by_data_sheet"] = peak
    return found


def bound(row: dict[str, Any], found: dict[str, float]) -> float | None:
    """Return the seconds that a row cannot beat: its bytes at full bandwidth, or its FLOPs."""
    rate = found.get(f"{row['dtype']}_flops_per_second", found["bfloat16_flops_per_second"])
    seconds = max(row["bytes"] / found["bytes_per_second"], row["flops"] / rate)
    return seconds or None


def _bandwidth(device: torch.device, rounds: int) -> float:
    numbers = torch.randn(2**28 if device.type == "cuda" else 2**26, device=device)
    size = numbers.numel() * 4
    if device.type == "cuda":
        other = torch.empty_like(numbers)
        return 2 * size / _best(lambda: other.copy_(numbers), device, rounds)
    table, vector = numbers.view(-1, 4096), torch.randn(4096)
    return size / min(
        _best(lambda: numbers.sum(), device, rounds), _best(lambda: table @ vector, device, rounds)
    )


def _best(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    return ""


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _flags() -> list[str]:
    have = _cpuinfo("flags").split()
    return [flag for flag in FLAGS if flag in have]
