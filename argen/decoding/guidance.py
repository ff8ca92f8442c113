"""Classifier-free guidance: null + w (cond - null), with a schedule for w (arXiv 2207.12598)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from argen.errors import UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond
from argen.generators.heads.guidance import GuidanceStep, Projection

Schedule = Literal["constant", "linear", "cosine", "power_cosine", "sine", "log"]


@dataclass(frozen=True)
class Guidance:
    """How strongly each step is pushed from the null prediction towards the conditional one.

    Attributes:
        scale: weight w, or its last value under a rising schedule; 1 means no guidance. A list
            gives every step its own weight (one a scale, for pyramids); its last value repeats.
        schedule: `constant` w = scale; the others rise from `start` to `scale` with the share r of
            the steps done: `linear` as r^power; `cosine` as (1 - cos(pi r)) / 2; `power_cosine`
            with r raised to `power` first (RAR); `sine` as sin(pi r / 2) and `log` as
            log(1 + (e - 1) r) (ELM, arXiv 2410.16257).
        power: exponent of `power_cosine` and `linear`.
        start: weight at r = 0 of a rising schedule.
        inclusive: whether the last step gets the full scale, r = step / (steps - 1) (VAR, xAR,
            D-AR), or one step less, r = step / steps (RAR, LPD).
        ahead: whether a step counts itself as done, r = (step + 1) / steps (ELM).
        interval: guide only the first `interval` + 2 steps, later ones are conditional
            (LlamaGen's `cfg_interval`); -1 guides all.
        sub_tokens: weights of each sub-token in place of `scale`, for factorised heads
            (Open-MAGVIT2); each follows the schedule.
        parallel: factor of the difference's part along the conditional prediction; 1 is plain
            guidance, 0 removes what only over-saturates (APG, arXiv 2410.02416).
        norm_cap: largest norm of the difference, 0 for none (APG).
    """

    scale: float | Sequence[float] = 1.0
    schedule: Schedule = "constant"
    power: float = 1.0
    start: float = 1.0
    inclusive: bool = False
    ahead: bool = False
    interval: int = -1
    sub_tokens: Sequence[float] = ()
    parallel: float = 1.0
    norm_cap: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sub_tokens", tuple(float(s) for s in self.sub_tokens))
        scales = [self.scale] if isinstance(self.scale, int | float) else list(self.scale)
        if not scales or min(*scales, *self.sub_tokens, self.start) < 0:
            raise UserError(
                f"cfg={self.scale} (start {self.start}) has a negative weight or none at all; "
                "1 means no guidance, 2 to 4 is usual."
            )
        if self.schedule not in get_args(Schedule):
            names = ", ".join(get_args(Schedule))
            raise UserError(f"Unknown guidance schedule {self.schedule!r}; use one of {names}.")
        if self.norm_cap < 0:
            raise UserError(f"norm_cap={self.norm_cap} is negative; 0 means no cap.")
        if self.sub_tokens and self.projection is not None:
            raise UserError(
                "Projected guidance (parallel, norm_cap) takes one weight, not one a sub-token."
            )
        if self.inclusive and self.ahead:
            raise UserError("inclusive and ahead name two last steps; choose one.")
        if not isinstance(self.scale, int | float):
            if self.schedule != "constant":
                raise UserError("A list of guidance weights is its own schedule; use constant.")
            object.__setattr__(self, "scale", tuple(float(s) for s in scales))

    @property
    def active(self) -> bool:
        """Whether null rows are needed at all."""
        if self.sub_tokens:
            return any(each.active for each in self._each())
        if not isinstance(self.scale, int | float):
            return any(scale != 1.0 for scale in self.scale)
        return self.scale != 1.0 or (self.schedule != "constant" and self.start != 1.0)

    @property
    def projection(self) -> Projection | None:
        """How the difference of the predictions is projected; None for plain guidance."""
        if self.parallel == 1.0 and self.norm_cap == 0.0:
            return None
        return Projection(self.parallel, self.norm_cap)

    def rows(self, generator: Generator, cond: Cond) -> Cond:
        """Return the rows to run: `cond`, or `cond` and its null twin stacked."""
        if not self.active:
            return cond
        return cond.cat(generator.conditioner.null(cond))

    def _each(self) -> list[Guidance]:
        """Return the guidance of each sub-token."""
        return [replace(self, scale=scale, sub_tokens=()) for scale in self.sub_tokens]

    def step(self, step: int, steps: int) -> GuidanceStep | None:
        """Return the guidance of step `step` of `steps`; None when it is off."""
        weight = self.weight(step, steps)
        return None if weight is None else GuidanceStep(weight, self.projection)

    def at(self, ratio: float) -> GuidanceStep | None:
        """Return the guidance when a share `ratio` in [0, 1] of the work is done; None when off.

        For strategies whose steps do unequal work: MAR's share is the one of codes known after
        the step, MaskGen's that of steps done after it.
        """
        return GuidanceStep(self.weight_at(ratio), self.projection) if self.active else None

    def weight(self, step: int, steps: int) -> float | tuple[float, ...] | None:
        """Return w of step `step` of `steps`, or one of each sub-token; None when it is off."""
        if not self.active:
            return None
        if self.sub_tokens:
            return tuple(each._weight(step, steps) for each in self._each())
        return self._weight(step, steps)

    def _weight(self, step: int, steps: int) -> float:
        if 0 <= self.interval < step - 1:
            return 1.0
        if not isinstance(self.scale, int | float):
            return self.scale[min(step, len(self.scale) - 1)]
        done = step + 1 if self.ahead else step
        return self.weight_at(done / max(1, steps - 1 if self.inclusive else steps))

    def weight_at(self, ratio: float) -> float:
        """Return w when a share `ratio` in [0, 1] of the work is done."""
        if self.sub_tokens or not isinstance(self.scale, int | float):
            raise UserError("A list of guidance weights needs a strategy that counts steps.")
        return self.start + (self.scale - self.start) * self._rise(ratio)

    def _rise(self, ratio: float) -> float:
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "linear":
            return ratio**self.power
        if self.schedule == "sine":
            return math.sin(math.pi * ratio / 2)
        if self.schedule == "log":
            return math.log1p((math.e - 1) * ratio)
        power = self.power if self.schedule == "power_cosine" else 1.0
        return (1.0 - math.cos(math.pi * ratio**power)) / 2.0


def repeat_for_cfg(rows: Tensor, guided: bool) -> Tensor:
    """Stack rows (B, ...) on themselves when guided: the conditional half, then the null half."""
    return torch.cat((rows, rows)) if guided else rows
