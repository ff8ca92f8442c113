"""One thing to measure, and how: taking turns, medians, peak memory."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


Amount = float | Callable[[Any], float]


@dataclass(frozen=True)
class Case:
    """One row of a table.

    Attributes:
        labels: what tells the row apart, in columns.
        call: does the work once; may return numbers to show beside the time.
        units: how many `unit` a call makes.
        unit: what is made, e.g. images or tokens; a rate in them is shown.
        bytes: fewest bytes that must be read from or written to memory; or how many, given what
            `call` returned.
        flops: floating-point operations of the matrix products, likewise.
        dtype: in which these run.
        bases: columns that compare this row with others: labels that tell each from this row.
        seconds: measured by the work itself, of a value that `call` returned, in place of the
            clock around `call`.
    """

    labels: Mapping[str, Any]
    call: Callable[[], Any]
    units: float = 1.0
    unit: str = "calls"
    bytes: Amount = 0.0
    flops: Amount = 0.0
    dtype: str = "float32"
    bases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: Callable[[Any], float] | None = None


@dataclass
class Row:
    """What was measured of a case."""

    case: Case
    seconds: list[float] = field(default_factory=list)
    extra_bytes: int | None = None
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median seconds of a call."""
        return statistics.median(self.seconds)

    def _amount(self, amount: Amount) -> float:
        return amount(self.numbers) if callable(amount) else amount

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        case = self.case
        return {
            "labels": dict(case.labels),
            "unit": case.unit,
            "units": case.units,
            "median_seconds": self.median,
            "fastest_seconds": min(self.seconds),
            "slowest_seconds": max(self.seconds),
            "runs": len(self.seconds),
            "extra_mb": None if self.extra_bytes is None else round(self.extra_bytes / 2**20, 1),
            "bytes": self._amount(case.bytes),
            "flops": self._amount(case.flops),
            "dtype": case.dtype,
            **({"bases": {k: dict(v) for k, v in case.bases.items()}} if case.bases else {}),
            **({"numbers": self.numbers} if self.numbers else {}),
        }


def measure(cases: Sequence[Case], *, rounds: int, device: torch.device) -> list[Row]:
    """Run cases in turn, so that what slows the machine for a while slows them alike.

    The first turn warms up and takes the peak memory: of a call, beyond what was held before it.

    Args:
        cases: what to run; all stay in memory meanwhile.
        rounds: timed turns.
        device: to wait for.
    """
    rows = [Row(case) for case in cases]
    for row in rows:
        gc.collect()
        before = _restart_peak(device)
        row.case.call()
        _wait(device)
        row.extra_bytes = None if before is None else max(0, _peak(device) - before)
    for _ in range(rounds):
        for row in rows:
            _wait(device)
            start = time.perf_counter()
            result = row.case.call()
            _wait(device)
            spent = time.perf_counter() - start
            row.seconds.append(spent if row.case.seconds is None else row.case.seconds(result))
            if isinstance(result, Mapping):
                row.numbers = dict(result)
    return rows


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _restart_peak(device: torch.device) -> int | None:
    """Forget the peak so far and return what is held now; None where the system cannot tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        _give_back_freed()
        CLEAR.write_text("5")
        return _resident("VmRSS")
    except (OSError, ValueError):
        return None


def _give_back_freed() -> None:
    """Return to the system what glibc holds for later: a call that reuses it would look free."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _resident("VmHWM")


def _resident(key: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{STATUS} has no {key}.")
