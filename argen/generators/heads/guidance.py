"""Where classifier-free guidance combines predictions: null + weight (cond - null).

Strategies hand a `GuidanceStep` to the head, which combines the doubled rows of its outputs, the
conditional half first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from argen.errors import UserError


@dataclass(frozen=True)
class Projection:
    """Adaptive projected guidance (arXiv 2410.02416): damp what only makes predictions louder.

    The difference of conditional and null prediction is shortened to a norm, and its part along the
    conditional prediction scaled; at high weights this part over-saturates images.

    Attributes:
        parallel: factor of the part along the conditional prediction; 1 is plain guidance.
        norm_cap: largest norm of the difference, 0 for none.
    """

    parallel: float = 1.0
    norm_cap: float = 0.0

    def __call__(self, cond: Tensor, null: Tensor, *, centred: bool) -> Tensor:
        """Return the conditional prediction (..., V) to guide towards.

        Args:
            cond: conditional prediction.
            null: null prediction.
            centred: whether a constant added to a prediction means nothing, as for logits.
        """
        difference = (cond - null).double()
        along, felt = cond.double(), difference
        if centred:
            along = along - along.mean(-1, keepdim=True)
            felt = difference - difference.mean(-1, keepdim=True)
        if self.norm_cap:
            norm = felt.norm(dim=-1, keepdim=True)
            shrink = (self.norm_cap / norm).clamp(max=1.0)
            difference, felt = difference * shrink, felt * shrink
        unit = torch.nn.functional.normalize(along, dim=-1)
        part = (felt * unit).sum(-1, keepdim=True) * unit
        return null + (difference - (1 - self.parallel) * part).to(cond.dtype)


@dataclass(frozen=True, eq=False)
class GuidanceStep:
    """How the predictions of one pass are combined.

    Attributes:
        weight: w, a number or a tensor (n,), (B, n) or, with sub-tokens, (B, n, G); for factorised
            heads also a sequence of one number a sub-token.
        projection: of the difference; None for plain guidance.
    """

    weight: float | Tensor | Sequence[float]
    projection: Projection | None = None

    @property
    def is_one(self) -> bool:
        """Whether the weight is the number 1, so that the null half has no say."""
        return isinstance(self.weight, int | float) and self.weight == 1.0


def guide(outputs: Tensor, guidance: GuidanceStep | None, *, centred: bool = True) -> Tensor:
    """Combine doubled rows: null + weight (cond - null), at least in float32.

    Where the weight is 1 the conditional rows pass unchanged, as plain rows do.

    Args:
        outputs: (2B, n, ...) with the conditional rows first, or (B, n, ...) when not guided.
        guidance: weight and projection, or None when not guided.
        centred: see `Projection`.

    Returns:
        (B, n, ...).

    Raises:
        UserError: for one weight a sub-token, which only factorised heads take.
    """
    outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
    if guidance is None:
        return outputs
    weight, projection = guidance.weight, guidance.projection
    cond, null = outputs.chunk(2)
    if isinstance(weight, Sequence):
        raise UserError(
            "A guidance weight for each sub-token needs a generator with a factorised head; this "
            "one takes a single weight."
        )
    aim = cond if projection is None else projection(cond, null, centred=centred)
    if isinstance(weight, Tensor):
        weight = weight.reshape(*weight.shape, *(1,) * (outputs.ndim - max(2, weight.ndim)))
        return torch.where(weight == 1.0, cond, null + weight * (aim - null))
    if weight == 1.0:
        return cond
    return null + weight * (aim - null)
