"""Residual quantisation: each level quantises what the levels before it left (arXiv 2107.03312)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from argen.errors import UserError
from argen.layers.collective import from_rank_zero
from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.tokenizers.quantizers.base import Quantized, Quantizer, straight_through
from argen.tokenizers.quantizers.ema import EMAVQ

DROPPED = -1  # the id of a level that was left out


class Residual(Quantizer):
    """Quantisers one after another; ids (..., levels), coarse first.

    Losses are summed over levels. Any prefix of the levels can be looked up.

    Args:
        levels: the quantisers, all of one width.
        shared: use the first one, `shared` times (RQ-VAE, arXiv 2203.01941); then `levels` holds
            just that one.
        gradient: `sum` passes the gradient straight through the sum of all levels; `level`
            through each level by that level's own rule, so that it adds up over levels
            (vector-quantize-pytorch).
        dropout: probability that a training step uses only a random number of leading levels.
    """

    def __init__(
        self,
        levels: Sequence[Quantizer],
        *,
        shared: int = 0,
        gradient: str = "sum",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not levels or len({level.dim for level in levels}) != 1:
            raise UserError("Residual quantisation needs levels of one width.")
        if any(len(level.vocab_sizes) != 1 for level in levels):
            raise UserError("Residual quantisation needs levels that give one id each.")
        if shared and len(levels) != 1:
            raise UserError(f"shared={shared} repeats one quantiser, but {len(levels)} are given.")
        if gradient not in ("sum", "level"):
            raise UserError(f"Unknown gradient {gradient!r}; use sum or level.")
        self.levels = nn.ModuleList(levels)
        self.shared, self.gradient, self.dropout = shared, gradient, dropout
        self.dim = levels[0].dim
        self.vocab_sizes = tuple(level.vocab_sizes[0] for level in self.each())
        if shared and isinstance(levels[0], EMAVQ):
            levels[0].deferred = True

    def each(self) -> list[Quantizer]:
        """Return the quantiser of every level, coarse first."""
        levels: list[Quantizer] = list(self.levels)  # type: ignore[arg-type]
        return levels * self.shared if self.shared else levels

    def by_level(self, z: Tensor) -> list[Quantized]:
        """Quantise vectors (..., C) level by level; in training codebooks learn on the way."""
        used, rest, found = self._used(z), z, []
        first = self.each()[0]
        late = first if isinstance(first, EMAVQ) and first.deferred and self.training else None
        if late is not None:
            late.prepare(late.normalise(z).reshape(-1, self.dim))
        for level in self.each()[:used]:
            quantized = level(rest)
            found.append(quantized)
            rest = rest - quantized.z.detach()
        if late is not None:
            late.refresh()
        return found

    def _used(self, z: Tensor) -> int:
        """Return how many levels this step uses, the same on every process."""
        levels = len(self.vocab_sizes)
        if not self.training or not self.dropout:
            return levels
        draw = from_rank_zero(torch.rand(2, device=z.device))
        return 1 + int(draw[1] * levels) if float(draw[0]) < self.dropout else levels

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise `z` (..., C); ids of dropped levels are -1."""
        found = self.by_level(z)
        total = torch.stack([q.z for q in found]).sum(0)
        if self.gradient == "sum":
            total = straight_through(z, total.detach())
        ids = [q.ids for q in found if q.ids is not None]
        ids += [torch.full_like(ids[0], DROPPED)] * (len(self.vocab_sizes) - len(ids))
        losses: dict[str, Tensor] = {}
        for quantized in found:
            for name, value in quantized.losses.items():
                losses[name] = losses[name] + value if name in losses else value
        return Quantized(z=total, ids=torch.stack(ids, dim=-1), losses=losses)

    @float32
    def encode(self, z: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Return ids (..., levels) of all levels."""
        ids, rest = [], z
        for level in self.each():
            ids.append(level.encode(rest))
            rest = rest - level.lookup(ids[-1])
        return torch.stack(ids, dim=-1)

    def lookup_levels(self, ids: Tensor) -> list[Tensor]:
        """Return the vectors (..., C) of each level of ids (..., g), g the levels given."""
        found = []
        for level, id_ in zip(self.each(), ids.unbind(-1)):
            vectors = level.lookup(id_.clamp(min=0))
            found.append(vectors.masked_fill((id_ == DROPPED)[..., None], 0.0))
        return found

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the summed vectors (..., C) of ids (..., g) of the first g levels."""
        if not 1 <= ids.shape[-1] <= len(self.vocab_sizes):
            raise UserError(
                f"Ids of {ids.shape[-1]} levels do not fit {len(self.vocab_sizes)} levels."
            )
        return torch.stack(self.lookup_levels(ids)).sum(0)
