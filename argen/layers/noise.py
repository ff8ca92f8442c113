"""Random numbers keyed by (sample seed, position, use): the same whatever the batch or device.

A counter-based generator hashes the key, so a number depends on nothing but its key: an image is
the same alone or in a batch of 64, on one process or on eight, and may be sampled out of order.
Recorded numbers replace it where a published run is replayed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

# Odd 64-bit multipliers of the SplitMix64 finaliser (Steele, Lea and Flood, OOPSLA 2014), as the
# signed numbers that int64 tensors hold.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


class Noise(Protocol):
    """Random numbers of heads and decoders; `use` tells those of one position apart."""

    def uniform(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return floats in (0, 1), (B, n, *size), for positions (n,) or (B, n)."""

    def normal(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return standard normal floats (B, n, *size)."""

    def gumbel(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return standard Gumbel floats (B, n, *size)."""


class SeededNoise:
    """Random numbers keyed by the sample's own seed.

    Args:
        seeds: one integer a sample, (B,).
        device: where the numbers are made.
    """

    def __init__(
        self, seeds: Sequence[int] | Tensor, *, device: torch.device | str = "cpu"
    ) -> None:
        base = torch.as_tensor(seeds, dtype=torch.int64, device=device)
        # Mixed twice, positions once: otherwise seed 3 at position 5 and seed 5 at position 3
        # would share a key.
        self.keys_B = _mix(_mix(base * _GOLDEN + 1))

    def _bits(self, positions: Tensor, size: Sequence[int], use: int) -> Tensor:
        """Return 64 hashed bits a number, (B, n, prod(size))."""
        positions = positions.to(self.keys_B.device)
        if positions.ndim == 1:
            positions = positions[None]
        keys = _mix(self.keys_B[:, None] ^ _mix(positions * _GOLDEN + use + 1))  # B n
        count = math.prod(size)
        steps = torch.arange(1, count + 1, device=keys.device) * _GOLDEN
        return _mix(keys[..., None] + steps)

    def uniform(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return float64 in (0, 1), (B, n, *size), for positions (n,) or (B, n)."""
        bits = self._bits(positions, size, use)
        # 52 bits and a half step fill the 53 of a float64's significand, so nothing is rounded: the
        # smallest number is 2^-53, the largest 1 - 2^-53.
        unit = (_shift(bits, 12).double() + 0.5) * 2.0**-52
        return unit.reshape(*bits.shape[:2], *size)

    def normal(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return standard normal floats (B, n, *size), by Box and Muller in float64."""
        bits = self._bits(positions, size, use)
        a = (_shift(bits, 32).double() + 0.5) * 2.0**-32
        b = ((bits & 0xFFFFFFFF).double() + 0.5) * 2.0**-32
        value = (-2.0 * a.log()).sqrt() * (2.0 * math.pi * b).cos()
        return value.float().reshape(*bits.shape[:2], *size)

    def gumbel(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return standard Gumbel floats (B, n, *size), computed in float64; all finite."""
        return -torch.log(-torch.log(self.uniform(positions, size, use=use))).float()
