"""Adaptive norms: a condition shifts, scales and gates what a block does (arXiv 2212.09748)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.layers.norms import NormFactory, make_norm
from argen.layers.transformer import Block


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (1 + scale) + shift."""
    return x * (1 + scale) + shift


class Modulation(nn.Module):
    """SiLU, then a linear map of the condition to several vectors.

    Args:
        cond_dim: width of the condition.
        dim: width D of the vectors.
        parts: number of vectors.
    """

    def __init__(self, cond_dim: int, dim: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.proj = nn.Linear(cond_dim, parts * dim)

    def forward(self, cond: Tensor) -> Tensor:
        """Map (..., cond_dim) to (..., parts, D)."""
        return self.proj(F.silu(cond)).unflatten(-1, (self.parts, -1))


class AdaLNBlock(Block):
    """A transformer block whose two halves are shifted, scaled and gated by a condition.

    Its six vectors are, in this order, shift, scale and gate of the attention, then of the
    feed-forward layer.

    Args:
        dim: model width D.
        heads: query heads.
        cond_dim: width of the condition, D by default.
        shared: take the six vectors from a `Modulation` that all blocks share and only add
            learned offsets of this block's own (VAR, arXiv 2404.02905).
        options: as for `Block`.
    """

    no_decay = ("offsets",)

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        cond_dim: int | None = None,
        shared: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(dim, heads, **options)
        self.modulation = None if shared else Modulation(cond_dim or dim, dim, 6)
        self.offsets = nn.Parameter(torch.randn(6, dim) / dim**0.5) if shared else None

    def vectors(self, cond: Tensor) -> Tensor:
        """Return the six vectors (B, 1 or L, 6, D) of a condition, as `forward` takes it."""
        if self.modulation is not None:
            vectors: Tensor = self.modulation(cond)
            return vectors
        assert self.offsets is not None
        return cond + self.offsets

    def forward(
        self,
        x_BLD: Tensor,
        *,
        cond: Tensor | None = None,
        vectors: Tensor | None = None,
        cond_index: Tensor | None = None,
        **attention: Any,
    ) -> Tensor:
        """Run the block.

        Args:
            x_BLD: the tokens.
            cond: (B, 1 or L, cond_dim), or with `shared` the common vectors (B, 1 or L, 6, D).
            vectors: the block's own, in place of a condition.
            cond_index: where many tokens share one of E conditions (B, E, ...): the condition of
                each token, long (L,).
            attention: as for `SelfAttention.forward`.
        """
        if vectors is None:
            assert cond is not None
            vectors = self.vectors(cond)
        if cond_index is not None:
            vectors = vectors[:, cond_index]
        shift1, scale1, gate1, shift2, scale2, gate2 = vectors.unbind(-2)  # B L D each
        attended = self.attention(modulate(self.attention_norm(x_BLD), shift1, scale1), **attention)
        x_BLD = x_BLD + self.drop_path(gate1 * attended)
        fed = self.ffn(modulate(self.ffn_norm(x_BLD), shift2, scale2))
        return x_BLD + self.drop_path(gate2 * fed)


class AdaNorm(nn.Module):
    """The norm before an output head, scaled and shifted by a condition.

    Args:
        dim: model width D.
        cond_dim: width of the condition, D by default.
        norm: kind of norm, see `make_norm`.
        eps: epsilon of the norm.
    """

    def __init__(
        self,
        dim: int,
        *,
        cond_dim: int | None = None,
        norm: str | NormFactory = "rms",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm = make_norm(norm, dim, eps)
        self.modulation = Modulation(cond_dim or dim, dim, 2)

    def forward(
        self, x_BLD: Tensor, cond: Tensor | None = None, *, vectors: Tensor | None = None
    ) -> Tensor:
        """Normalise `x` under a condition (B, 1 or L, cond_dim), or its vectors (B, 1 or L, 2, D).

        The vectors are those of `modulation`: scale and shift.
        """
        scale, shift = (self.modulation(cond) if vectors is None else vectors).unbind(-2)
        return modulate(self.norm(x_BLD), shift, scale)


@torch.no_grad()
def init_modulated(
    blocks: Iterable[nn.Module], norm: nn.Module, *, modulation: float, gate: float
) -> None:
    """Scale the initial weights that shift, scale and gate blocks, and those of the last norm.

    Args:
        blocks: `AdaLNBlock`s.
        norm: the norm before the head.
        modulation: factor on those of shifts and scales.
        gate: factor on those of gates.
    """
    # Shift, scale and gate of the attention, then of the feed-forward layer.
    factor_61 = torch.tensor((modulation, modulation, gate) * 2)[:, None]
    for block in blocks:
        assert isinstance(block, AdaLNBlock)
        if block.offsets is not None:
            block.offsets.mul_(factor_61)
        if block.modulation is not None:
            block.modulation.proj.weight.view(6, -1).mul_(factor_61)
    if isinstance(norm, AdaNorm):
        norm.modulation.proj.weight.mul_(modulation)


@dataclass
class Modulations:
    """The modulation vectors of every block, computed before the blocks run.

    They depend on the condition, and may depend on the slot, but on no code. The weights that make
    them are a third of such a network; computed for several passes at once, they are read once.

    Attributes:
        first: first slot that they are for; where there is one place, they hold for all slots.
        blocks: vectors (R, 1 or m, 6, D) of each block.
        last: those of the last norm (R, 1 or m, 2, D), if it has any.
    """

    first: int
    blocks: list[Tensor]
    last: Tensor | None

    @classmethod
    def of(
        cls,
        blocks: Iterable[nn.Module],
        norm: nn.Module,
        cond: Tensor,
        shared: Tensor | None = None,
        *,
        first: int = 0,
    ) -> Modulations:
        """Return those of conditions (R, 1 or m, cond_dim); `shared` as blocks take it instead."""
        given, made = cond if shared is None else shared, []
        for block in blocks:
            assert isinstance(block, AdaLNBlock)
            made.append(block.vectors(given))
        return cls(first, made, norm.modulation(cond) if isinstance(norm, AdaNorm) else None)

    def at(self, slot: int) -> Modulations | None:
        """Return those of one slot, None if it is not among them."""
        place = slot - self.first
        if not 0 <= place < self.blocks[0].shape[1]:
            return None
        here = slice(place, place + 1)
        last = None if self.last is None else self.last[:, here]
        return Modulations(slot, [vectors[:, here] for vectors in self.blocks], last)


@dataclass
class ModulationCache:
    """Modulations kept from pass to pass; part of a decoding state, as the key/value cache is.

    Attributes:
        kept: those of the last slots they were computed for.
    """

    kept: Modulations | None = None


def run_modulated(
    x: Tensor, blocks: Iterable[nn.Module], norm: nn.Module, made: Modulations, **attention: Any
) -> Tensor:
    """Run blocks and the last norm over tokens (R, n, D) with vectors that were computed before."""
    for layer, (block, vectors) in enumerate(zip(blocks, made.blocks)):
        x = block(x, layer=layer, vectors=vectors, **attention)
    return norm(x) if made.last is None else norm(x, vectors=made.last)
