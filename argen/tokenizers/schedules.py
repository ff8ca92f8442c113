"""Numbers that change with the training step: loss weights, temperatures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from argen.build import buildable
from argen.errors import UserError

Scheduled = float | Callable[[int], float]


@buildable()
@dataclass(frozen=True)
class Linear:
    """`start` until step `begin`, then in a straight line to `end` within `steps` steps.

    With `steps` 0 it jumps.
    """

    start: float
    end: float
    begin: int = 0
    steps: int = 0

    def __call__(self, step: int) -> float:
        """Return the value at a step."""
        if step < self.begin:
            return self.start
        done = 1.0 if self.steps <= 0 else min(1.0, (step - self.begin) / self.steps)
        return self.start + (self.end - self.start) * done


@buildable()
@dataclass(frozen=True)
class WarmupCosine:
    """In a straight line from `start` to `peak`, then down a half cosine to `end`; then `end`.

    Attributes:
        start: value at step 0.
        peak: value at step `warmup`.
        end: value from step `steps` on.
        warmup: steps of the line.
        steps: steps in all.
    """

    start: float
    peak: float
    end: float
    steps: int
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.steps <= self.warmup:
            raise UserError(f"steps {self.steps} must be more than the warm-up's {self.warmup}.")

    def __call__(self, step: int) -> float:
        """Return the value at a step."""
        if step < self.warmup:
            return self.start + (self.peak - self.start) * step / self.warmup
        done = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        return self.end + (self.peak - self.end) * (1 + math.cos(math.pi * done)) / 2


def value_at(value: Scheduled, step: int) -> float:
    """Return a plain number, or a scheduled one at `step`."""
    return float(value(step)) if callable(value) else float(value)


def apply_step(module: nn.Module, step: int) -> None:
    """Tell every part of `module` that has an `at_step` method which step begins.

    Called once before each training step, so that annealed temperatures follow the step and
    are right again after a resume.
    """
    for part in module.modules():
        follow = getattr(part, "at_step", None)
        if callable(follow):
            follow(step)
