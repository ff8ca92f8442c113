"""The distribution of each position of a pass: guided, filtered, normalised.

Shapes: R rows (samples, doubled under guidance), B samples, n positions, G sub-tokens,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance, repeat_for_cfg
from argen.generators.base import Generator
from argen.generators.heads.base import Head, filter_of
from argen.generators.heads.guidance import GuidanceStep, Projection, guide


def probs_type(generator: Generator) -> tuple[torch.dtype, torch.device]:
    """Return dtype (float64 for float64 weights, else float32) and device of its probabilities."""
    weight = next(generator.parameters())
    return torch.float64 if weight.dtype == torch.float64 else torch.float32, weight.device


@dataclass(frozen=True)
class GuidanceTable:
    """Guidance of every step.

    Attributes:
        weights: (L,) or (L, G).
        projection: of the difference, or None.
    """

    weights: Tensor
    projection: Projection | None = None

    def at(self, steps: Tensor) -> GuidanceStep:
        """Return the guidance of steps (B, n); past the end that of the last one."""
        return GuidanceStep(self.weights[steps.clamp(max=len(self.weights) - 1)], self.projection)


def guidance_table(guidance: Guidance, generator: Generator) -> GuidanceTable | None:
    """Return the guidance of every step, or None when it is off."""
    if not guidance.active:
        return None
    dtype, device = probs_type(generator)
    steps = len(generator.plan.groups)
    weights = [guidance.weight(step, steps) for step in range(steps)]
    return GuidanceTable(torch.tensor(weights, dtype=dtype, device=device), guidance.projection)


class Distributions:
    """Distributions of the positions that one `predict` call described.

    Args:
        head: the generator's head.
        outputs: what `predict` returned, (R, n, ...).
        steps: step of each position (B, n); those past the end mean nothing.
        weights: guidance of each step, or None.
        filters: logit filters.
    """

    def __init__(
        self,
        head: Head,
        outputs: Tensor,
        steps: Tensor,
        guidance: GuidanceTable | None,
        filters: Filters,
    ) -> None:
        self.head, self.outputs, self.filters = head, outputs, filters
        self.guidance = None if guidance is None else guidance.at(steps)
        self._single: Tensor | None = None

    def logits(self, ids: Tensor) -> Tensor:
        """Return guided logits (B, n, G, V), before the filters, given `ids` (B, n, G)."""
        codes = repeat_for_cfg(self.head.to_codes(ids), self.guidance is not None)
        return guide(self.head.conditional(self.outputs, codes), self.guidance)

    def probs(self, ids: Tensor) -> Tensor:
        """Return the distribution (B, n, G, V) of each sub-token given those before it in `ids`.

        Args:
            ids: (B, n, G); the last sub-token is not looked at, so with G = 1 nothing is.
        """
        if self._single is not None:
            return self._single
        logits = self.logits(ids)
        if self.filters.sub_tokens:
            each = [filter_of(self.filters, g)(logits[:, :, g]) for g in range(ids.shape[-1])]
            logits = torch.stack(each, dim=2)
        else:
            logits = self.filters(logits)
        probs = torch.softmax(logits, dim=-1)
        if ids.shape[-1] == 1:
            self._single = probs
        return probs
