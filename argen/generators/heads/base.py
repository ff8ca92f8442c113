"""Output heads: from the network's hidden vectors to a distribution over one group's codes.

A head owns the loss and the sampling; guidance, logit filters and noise come from outside.
Under guidance the rows of `outputs` are doubled: the conditional half first, then the null half.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from argen.errors import IncompatibleError, UserError
from argen.generators.heads.guidance import GuidanceStep, guide
from argen.layers.noise import Noise

Filter = Callable[[Tensor], Tensor]


class Head(nn.Module, ABC):
    """From hidden vectors (B, n, D) to codes; `outputs` is whatever `forward` returns."""

    @abstractmethod
    def forward(self, hidden_BnD: Tensor) -> Tensor:
        """Return what describes the distribution of each position."""

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor, **options: Any) -> Tensor:
        """Return the loss of each position (B, n)."""

    def output_layers(self) -> list[nn.Linear]:
        """Return the layers that give logits, which some recipes start at zero."""
        return []

    def guided(self, outputs: Any, guidance: GuidanceStep | None) -> Any:
        """Return what observers are shown: guided outputs, where guidance acts on them.

        Diffusion and flow heads guide inside `sample` and show the raw rows.
        """
        return guide(outputs, guidance)

    @property
    def id_sizes(self) -> tuple[int, ...]:
        """Vocabulary size of each sub-token, where codes have a tractable pmf; else ()."""
        return ()

    def to_ids(self, codes: Tensor) -> Tensor:
        """Return the sub-tokens (..., G) of codes (...)."""
        return codes[..., None]

    def to_codes(self, ids: Tensor) -> Tensor:
        """Return the codes of sub-tokens (..., G)."""
        return ids[..., 0]

    def conditional(self, outputs: Tensor, codes: Tensor) -> Tensor:
        """Return the logits (R, n, G, V) of each sub-token given those before it in its code.

        Strategies that test drafts need it; filters and guidance come after.

        Args:
            outputs: from `forward`, (R, n, ...).
            codes: (R, n, ...); their last sub-token is not looked at.

        Raises:
            IncompatibleError: for heads whose codes have no tractable pmf.
        """
        raise IncompatibleError(
            f"{type(self).__name__} gives no probabilities of its codes, so drafts of them cannot "
            "be tested: use decoder=sequential."
        )

    @abstractmethod
    def sample(
        self,
        outputs: Tensor,
        *,
        guidance: GuidanceStep | None,
        filters: Filter,
        noise: Noise,
        positions: Tensor,
    ) -> Tensor:
        """Sample the codes of a group.

        Args:
            outputs: from `forward`; 2B rows when `guidance` is given.
            guidance: weight and projection of this pass; None when not guided.
            filters: maps guided logits to filtered ones (identity for continuous heads).
            noise: random numbers keyed by sample and position.
            positions: positions of the group, long (n,) or (B, n).

        Returns:
            codes (B, n), (B, n, G) or (B, n, C).
        """


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
