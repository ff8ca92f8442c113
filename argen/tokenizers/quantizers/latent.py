"""Latent quantisation (QLAE, arXiv 2305.18378): each number has its own short table of values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError
from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.tokenizers.quantizers.base import Quantized, Quantizer, straight_through


class LatentQuantizer(Quantizer):
    """Every number of a vector takes the nearest value of a learned table of its own.

    Like finite scalar quantisation with learned levels and no bound. Ids (..., C) name a value of
    each table as it stands, so they stay true while the tables move. Losses: `codebook` and
    `commitment`, 0.01 each in the paper; its main ingredient is strong weight decay (0.1) on the
    networks.

    Args:
        levels: number of values in the table of each number.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise UserError(f"Each number needs at least two values, not {list(levels)}.")
        self.dim, self.vocab_sizes = len(levels), tuple(int(n) for n in levels)
        self.tables = nn.ParameterList(torch.linspace(-0.5, 0.5, n) for n in self.vocab_sizes)

    def _nearest(self, z: Tensor, table: Tensor) -> Tensor:
        """Return ids of the nearest values, by bisection between sorted values."""
        values, order = table.detach().float().sort()
        middles = (values[1:] + values[:-1]) / 2
        return order[torch.bucketize(z.detach().contiguous(), middles)]

    @float32
    def encode(self, z: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Return ids (..., C)."""
        columns = zip(z.unbind(-1), self.tables)
        return torch.stack([self._nearest(column, table) for column, table in columns], dim=-1)

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise `z` (..., C)."""
        ids = self.encode(z)
        quantized = self.lookup(ids)
        losses = {
            "codebook": F.mse_loss(quantized, z.detach()),
            "commitment": F.mse_loss(z, quantized.detach()),
        }
        return Quantized(z=straight_through(z, quantized), ids=ids, losses=losses)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., C) of ids (..., C)."""
        columns = zip(ids.unbind(-1), self.tables)
        return torch.stack([table.float()[column] for column, table in columns], dim=-1)
