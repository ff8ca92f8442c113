"""Output heads: from the network's hidden vectors to a distribution over one group's codes.

A head owns the loss and the draw; guidance weight, logit filters and noise come from outside.
Under guidance the rows of `params` are doubled: the conditional half first, then the null half.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import IncompatibleError, UserError
from argen.layers.noise import Noise

Filter = Callable[[Tensor], Tensor]
Weight = float | Tensor | Sequence[float] | None


class Head(nn.Module, ABC):
    """From hidden vectors (B, n, D) to codes; `params` is whatever `forward` returns."""

    @abstractmethod
    def forward(self, hidden_BnD: Tensor) -> Tensor:
        """Return the parameters of the distribution of each position."""

    @abstractmethod
    def loss(self, params: Tensor, target: Tensor, **draws: Any) -> Tensor:
        """Return the loss of each position (B, n)."""

    def outputs(self) -> list[nn.Linear]:
        """Return the layers that give logits, which some recipes start at zero."""
        return []

    def guided(self, params: Any, weight: Weight) -> Any:
        """Return what observers are shown: guided parameters, where guidance acts on them.

        Diffusion and flow heads guide inside the draw and show the raw rows.
        """
        return guide(params, weight)

    @property
    def id_sizes(self) -> tuple[int, ...]:
        """Vocabulary size of each sub-token, where codes have listed laws."""
        return ()

    def to_ids(self, codes: Tensor) -> Tensor:
        """Return the sub-tokens (..., G) of codes (...)."""
        return codes[..., None]

    def to_codes(self, ids: Tensor) -> Tensor:
        """Return the codes of sub-tokens (..., G)."""
        return ids[..., 0]

    def conditional(self, params: Tensor, codes: Tensor) -> Tensor:
        """Return the logits (R, n, G, V) of each sub-token given those before it in its code.

        Strategies that test drafts need it; filters and guidance come after.

        Args:
            params: from `forward`, (R, n, ...).
            codes: (R, n, ...); their last sub-token is not looked at.

        Raises:
            IncompatibleError: for heads whose codes have no listed law.
        """
        raise IncompatibleError(
            f"{type(self).__name__} gives no listed law for its codes, so drafts of them cannot be "
            "tested: use decoder=sequential."
        )

    @abstractmethod
    def sample(
        self,
        params: Tensor,
        *,
        weight: Weight,
        filters: Filter,
        noise: Noise,
        positions: Tensor,
    ) -> Tensor:
        """Draw the codes of a group.

        Args:
            params: from `forward`; 2B rows when `weight` is given.
            weight: guidance weight, a number or (n,) or (B, n), or for factorised heads a list of
                one a sub-token; None when not guided.
            filters: maps guided logits to filtered ones (identity for continuous heads).
            noise: draws keyed by sample and position.
            positions: positions of the group, long (n,) or (B, n).

        Returns:
            codes (B, n), (B, n, G) or (B, n, C).
        """


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


class Projected(float):
    """A guidance weight that asks for projected guidance; elsewhere an ordinary number."""

    projection: Projection

    def __new__(cls, weight: float, projection: Projection) -> Projected:
        """Make the number."""
        number = super().__new__(cls, weight)
        number.projection = projection
        return number


def guide(
    params: Tensor,
    weight: Weight,
    *,
    projection: Projection | None = None,
    centred: bool = True,
) -> Tensor:
    """Combine doubled rows: null + weight (cond - null), at least in float32.

    Where the weight is 1 the conditional rows pass unchanged, as plain rows do.

    Args:
        params: (2B, n, ...) with the conditional rows first, or (B, n, ...) when not guided.
        weight: None, a number, or a tensor (n,) or (B, n).
        projection: of the difference; a `Projected` weight brings its own.
        centred: see `Projection`.
    """
    params = params if params.dtype == torch.float64 else params.float()
    if weight is None:
        return params
    cond, null = params.chunk(2)
    if isinstance(weight, Sequence):
        raise UserError(
            "A guidance weight for each sub-token needs a generator with a factorised head; this "
            "one takes a single weight."
        )
    if isinstance(weight, Projected):
        projection = weight.projection
    aim = cond if projection is None else projection(cond, null, centred=centred)
    if isinstance(weight, Tensor):
        weight = weight.reshape(*weight.shape, *(1,) * (params.ndim - max(2, weight.ndim)))
        return torch.where(weight == 1.0, cond, null + weight * (aim - null))
    if weight == 1.0:
        return cond
    return null + weight * (aim - null)


def filter_of(filters: Filter, sub_token: int) -> Filter:
    """Return the filter of one sub-token, where `filters` holds one for each."""
    each = getattr(filters, "sub_tokens", ())
    if not each:
        return filters
    if sub_token >= len(each):
        raise UserError(
            f"Filters were given for {len(each)} sub-tokens, but there are more; give one for each."
        )
    return each[sub_token]


def draw_categorical(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw by inverting the cumulative distribution.

    Args:
        logits: (..., V), float32; -inf excludes a token.
        uniform: (...), in (0, 1).

    Returns:
        ids (...), long.
    """
    cdf = torch.softmax(logits, dim=-1).cumsum(-1)
    # Scaling by the last entry keeps rounding from pointing past the end, and `right=True`
    # never picks a token of probability zero.
    target = (uniform[..., None] * cdf[..., -1:]).to(cdf.dtype)
    ids = torch.searchsorted(cdf, target, right=True)[..., 0]
    last = (cdf < cdf[..., -1:]).sum(-1)
    return torch.minimum(ids, last)
