"""Product quantisation: the channels are cut into groups, each with a code of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from argen.errors import UserError
from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.tokenizers.quantizers.base import Quantized, Quantizer


class Grouped(Quantizer):
    """Groups of channels quantised apart; ids (..., G). Losses are averaged over groups.

    Args:
        quantizers: one a group, or a single one that all groups share.
        shared: number of groups that share a single quantiser; 0 when each has its own.
    """

    def __init__(self, quantizers: Sequence[Quantizer], *, shared: int = 0) -> None:
        super().__init__()
        if not quantizers or any(len(q.vocab_sizes) != 1 for q in quantizers):
            raise UserError("Each group needs a quantiser that gives one id.")
        if shared and len(quantizers) != 1:
            raise UserError(
                f"shared={shared} takes one quantiser, but {len(quantizers)} are given."
            )
        self.quantizers, self.shared = nn.ModuleList(quantizers), shared
        repeats = shared or 1
        self.widths = tuple(q.dim for q in quantizers) * repeats
        self.dim = sum(self.widths)
        self.vocab_sizes = tuple(q.vocab_sizes[0] for q in quantizers) * repeats

    def each(self) -> list[Quantizer]:
        """Return the quantisers, one a group unless shared."""
        return list(self.quantizers)  # type: ignore[arg-type]

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise `z` (..., C)."""
        if self.shared:
            one = self.each()[0](z.unflatten(-1, (self.shared, -1)))
            return Quantized(z=one.z.flatten(-2), ids=one.ids, losses=one.losses)
        parts = [q(part) for q, part in zip(self.each(), z.split(self.widths, dim=-1))]
        return Quantized(
            z=torch.cat([part.z for part in parts], dim=-1),
            ids=torch.stack([part.ids for part in parts], dim=-1),
            losses={
                name: torch.stack([part.losses[name] for part in parts]).mean()
                for name in parts[0].losses
            },
        )

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., C) of ids (..., G)."""
        if self.shared:
            return self.each()[0].lookup(ids).flatten(-2)
        return torch.cat([q.lookup(i) for q, i in zip(self.each(), ids.unbind(-1))], dim=-1)
