"""Classifier-free guidance: null + w (cond - null), with a schedule for w (arXiv 2207.12598)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from argen.errors import UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond

Schedule = Literal["constant", "linear", "cosine", "power_cosine"]


@dataclass(frozen=True)
class Guidance:
    """How strongly each step is pushed from the null prediction towards the conditional one.

    Attributes:
        scale: weight w, or its last value under a rising schedule; 1 means no guidance.
        schedule: `constant` w = scale; `linear` rises from 1 over the steps; `cosine` rises as
            (1 - cos(pi r)) / 2; `power_cosine` with r raised to `power` first (RAR).
        power: exponent of `power_cosine`.
        interval: guide only the first `interval` + 2 steps, later ones are conditional
            (LlamaGen's `cfg_interval`); -1 guides all.
    """

    scale: float = 1.0
    schedule: Schedule = "constant"
    power: float = 1.0
    interval: int = -1

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise UserError(f"cfg={self.scale} is negative; 1 means no guidance, 2 to 4 is usual.")
        if self.schedule not in ("constant", "linear", "cosine", "power_cosine"):
            raise UserError(
                f"Unknown guidance schedule {self.schedule!r}; use constant, linear, cosine or "
                "power_cosine."
            )

    @property
    def active(self) -> bool:
        """Whether null rows are needed at all."""
        return self.scale != 1.0

    def rows(self, generator: Generator, cond: Cond) -> Cond:
        """Return the rows to run: `cond`, or `cond` and its null twin stacked."""
        if not self.active:
            return cond
        return cond.cat(generator.conditioner.null(cond))

    def weight(self, step: int, steps: int) -> float | None:
        """Return w of step `step` of `steps`; None when guidance is off."""
        if not self.active:
            return None
        if 0 <= self.interval < step - 1:
            return 1.0
        if self.schedule == "constant":
            return self.scale
        ratio = step / max(1, steps)
        if self.schedule == "linear":
            rise = ratio
        else:
            power = self.power if self.schedule == "power_cosine" else 1.0
            rise = (1.0 - math.cos(math.pi * ratio**power)) / 2.0
        return 1.0 + (self.scale - 1.0) * rise
