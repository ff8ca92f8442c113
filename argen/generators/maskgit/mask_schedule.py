"""How many codes stay unknown as masked generation goes on: the curves of MaskGIT and its kin."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from argen.errors import UserError, suggest

# Share of the codes still unknown when a share r of the steps is done (arXiv 2202.04200, A.3, and
# 2406.07550 for arccos, which reveals the fewest codes at first).
SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "arccos": lambda r: torch.acos(r) / (math.pi * 0.5),
    "cosine": lambda r: torch.cos(r * math.pi * 0.5),
    "linear": lambda r: 1.0 - r,
    "root": lambda r: 1.0 - r.sqrt(),
    "square": lambda r: 1.0 - r.square(),
}


def check_schedule(schedule: str) -> None:
    """Raise `UserError` for a name that is not a schedule."""
    if schedule not in SCHEDULES:
        raise UserError(
            f"Unknown mask schedule {schedule!r}.{suggest(schedule, SCHEDULES)} Known: "
            f"{', '.join(SCHEDULES)}."
        )


def unknown_share(schedule: str, progress: Tensor) -> Tensor:
    """Return the share of codes still unknown at `progress` in [0, 1], elementwise."""
    check_schedule(schedule)
    return SCHEDULES[schedule](progress)


def unknown_after(schedule: str, length: int, step: int, steps: int, *, unknown: int) -> int:
    """Return how many codes stay unknown after a step: none after the last.

    Args:
        schedule: name of the curve.
        length: codes to draw in all.
        step: number of the step, from 0.
        steps: number of steps.
        unknown: codes unknown before it; at least one is drawn while there are several.
    """
    if step == steps - 1:
        return 0
    progress = torch.tensor((step + 1) / steps, dtype=torch.float64, device="cpu")
    planned = math.floor(length * float(unknown_share(schedule, progress)))
    return max(1, min(unknown - 1, planned))


def group_sizes(schedule: str, length: int, steps: int) -> list[int]:
    """Return how many codes each of at most `steps` steps draws; steps that draw none are left out.

    A plan is made of these sizes.
    """
    sizes, unknown = [], length
    for step in range(steps):
        after = unknown_after(schedule, length, step, steps, unknown=unknown)
        if after < unknown:
            sizes.append(unknown - after)
        unknown = after
    return sizes
