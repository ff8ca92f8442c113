"""The law of each position of a pass: guided, filtered, normalised.

Names: R rows (samples, doubled under guidance), B samples, n positions, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.generators.base import Generator
from argen.generators.heads import Head, filter_of, guide


def twice(rows: Tensor, guided: bool) -> Tensor:
    """Repeat the rows of B samples for the null half, when guided."""
    return torch.cat((rows, rows)) if guided else rows


def law_type(generator: Generator) -> tuple[torch.dtype, torch.device]:
    """Return the type (float64 for float64 weights, else float32) and device of its laws."""
    weight = next(generator.parameters())
    return torch.float64 if weight.dtype == torch.float64 else torch.float32, weight.device


def guidance_weights(guidance: Guidance, generator: Generator) -> Tensor | None:
    """Return the guidance weight of every step, (L,) or (L, G), or None when guidance is off."""
    if not guidance.active:
        return None
    dtype, device = law_type(generator)
    steps = len(generator.plan.groups)
    weights = [guidance.weight(step, steps) for step in range(steps)]
    return torch.tensor(weights, dtype=dtype, device=device)


class Laws:
    """Laws of the positions that one `predict` call described.

    Args:
        head: the generator's head.
        params: what `predict` returned, (R, n, ...).
        steps: step of each position (B, n); those past the end mean nothing.
        weight_L: guidance weight of each step, (L,) or (L, G), or None.
        filters: logit filters.
    """

    def __init__(
        self,
        head: Head,
        params: Tensor,
        steps: Tensor,
        weight_L: Tensor | None,
        filters: Filters,
    ) -> None:
        self.head, self.params, self.filters = head, params, filters
        self.weight_Bn = None
        if weight_L is not None:
            self.weight_Bn = weight_L[steps.clamp(max=len(weight_L) - 1)]
        self._single: Tensor | None = None

    def logits(self, ids: Tensor) -> Tensor:
        """Return guided logits (B, n, G, V), before the filters, given `ids` (B, n, G)."""
        codes = twice(self.head.to_codes(ids), self.weight_Bn is not None)
        return guide(self.head.conditional(self.params, codes), self.weight_Bn)

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
