"""The law of each position of a pass: guided, filtered, normalised.

Names: R rows (samples, doubled under guidance), B samples, n positions, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.generators.base import Generator
from argen.generators.heads.base import Head, Projection, filter_of, guide


def twice(rows: Tensor, guided: bool) -> Tensor:
    """Repeat the rows of B samples for the null half, when guided."""
    return torch.cat((rows, rows)) if guided else rows


def law_type(generator: Generator) -> tuple[torch.dtype, torch.device]:
    """Return the type (float64 for float64 weights, else float32) and device of its laws."""
    weight = next(generator.parameters())
    return torch.float64 if weight.dtype == torch.float64 else torch.float32, weight.device


@dataclass(frozen=True)
class StepWeights:
    """Guidance of every step.

    Attributes:
        table: weights, (L,) or (L, G).
        projection: of the difference, or None.
    """

    table: Tensor
    projection: Projection | None = None


def guidance_weights(guidance: Guidance, generator: Generator) -> StepWeights | None:
    """Return the guidance of every step, or None when it is off."""
    if not guidance.active:
        return None
    dtype, device = law_type(generator)
    steps = len(generator.plan.groups)
    weights = [guidance.weight(step, steps) for step in range(steps)]
    table = torch.tensor(weights, dtype=dtype, device=device)
    return StepWeights(table, guidance.projection)


class Laws:
    """Laws of the positions that one `predict` call described.

    Args:
        head: the generator's head.
        params: what `predict` returned, (R, n, ...).
        steps: step of each position (B, n); those past the end mean nothing.
        weights: guidance of each step, or None.
        filters: logit filters.
    """

    def __init__(
        self,
        head: Head,
        params: Tensor,
        steps: Tensor,
        weights: StepWeights | None,
        filters: Filters,
    ) -> None:
        self.head, self.params, self.filters = head, params, filters
        self.weight_Bn, self.projection = None, None
        if weights is not None:
            self.weight_Bn = weights.table[steps.clamp(max=len(weights.table) - 1)]
            self.projection = weights.projection
        self._single: Tensor | None = None

    def logits(self, ids: Tensor) -> Tensor:
        """Return guided logits (B, n, G, V), before the filters, given `ids` (B, n, G)."""
        codes = twice(self.head.to_codes(ids), self.weight_Bn is not None)
        logits = self.head.conditional(self.params, codes)
        return guide(logits, self.weight_Bn, projection=self.projection)

    def given(self, ids: Tensor) -> Tensor:
        """Return the law (B, n, G, V) of each sub-token given those before it in `ids`.

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
        law = torch.softmax(logits, dim=-1)
        if ids.shape[-1] == 1:
            self._single = law
        return law
