"""Embeddings of time for diffusion and flow networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoid(t: Tensor, width: int, *, max_period: float = 10000.0) -> Tensor:
    """Return (..., width): cosines, then sines, of t (...) times falling frequencies, float32."""
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    angle = t[..., None].float() * torch.exp(-math.log(max_period) * index / half)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class TimestepEmbedding(nn.Module):
    """Sinusoids of a time in 0..1000 through a two-layer SiLU network.

    Args:
        dim: output width D.
        frequencies: width of the sinusoids.
    """

    def __init__(self, dim: int, *, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.fc1 = nn.Linear(frequencies, dim)
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        """Embed times (...) to (..., D)."""
        x = sinusoid(t, self.frequencies).to(self.fc1.weight.dtype)
        return self.fc2(F.silu(self.fc1(x)))
