"""Finite scalar quantisation (arXiv 2309.15505): round each of a few bounded numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from argen.errors import UserError
from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.tokenizers.quantizers.base import Quantized, Quantizer, straight_through


class FSQ(Quantizer):
    """A fixed grid of prod(levels) codes: no codebook to learn, none to collapse.

    Args:
        levels: number of values of each of the C numbers, e.g. (8, 8, 8) for 512 codes.
        symmetric: spread the values evenly over [-1, 1] ends included; otherwise the paper's
            form, in which an even number of levels has one more value below zero than above.
        groups: cut the vector into this many groups of C numbers, with one id each.
    """

    def __init__(self, levels: Sequence[int], *, symmetric: bool = False, groups: int = 1) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise UserError(f"FSQ needs at least two levels a number, not {list(levels)}.")
        self.levels = tuple(int(level) for level in levels)
        self.dim = len(self.levels) * groups
        self.vocab_sizes = (math.prod(self.levels),) * groups
        self.symmetric, self.groups = symmetric, groups
        self.level_sizes: Tensor
        self.strides: Tensor
        sizes = torch.tensor(self.levels)
        # The first number varies fastest.
        strides = torch.cat((torch.ones(1, dtype=torch.long), sizes.cumprod(0)[:-1]))
        self.register_buffer("level_sizes", sizes, persistent=False)
        self.register_buffer("strides", strides, persistent=False)

    def _digits(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bounded numbers and their digits in [0, level), both (..., C)."""
        size = self.level_sizes
        if self.symmetric:
            bounded = (size - 1) * (torch.tanh(z) + 1) / 2
            return bounded, (bounded + 0.5).floor().long()
        # The bound is a little wider than the grid, so that the outermost values are reached.
        half = (size - 1) * (1 + 1e-3) / 2
        offset = torch.where(size % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
        return bounded + size // 2, bounded.round().long() + size // 2

    def _values(self, digits: Tensor) -> Tensor:
        """Map digits (float, so that gradients pass) to code values."""
        if self.symmetric:
            return digits * 2 / (self.level_sizes - 1) - 1
        half = self.level_sizes // 2
        return (digits - half) / half

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise `z` (..., C); there is no loss."""
        if self.groups > 1:
            z = z.unflatten(-1, (self.groups, -1))
        bounded, digits = self._digits(z)
        quantized = self._values(straight_through(bounded, digits.float()))
        if self.groups > 1:
            quantized = quantized.flatten(-2)
        return Quantized(z=quantized, ids=(digits * self.strides).sum(-1))

    def digits(self, ids: Tensor) -> Tensor:
        """Return which level of each number ids stand for, one more axis than `ids`."""
        return ids[..., None] // self.strides % self.level_sizes

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., C) of ids (...), or (..., G) where there are groups."""
        values = self._values(self.digits(ids).float())
        return values.flatten(-2) if self.groups > 1 else values
