"""The block of xAR's training step: adaptive norms, rotary attention, a gated feed-forward layer.

Written from a description of it (see `xar`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Norm(nn.Module):
    """RMSNorm in float32, cast back before the weight if it has one."""

    def __init__(self, dim: int, *, affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., D)."""
        wide = x.float()
        unit = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + 1e-6)
        unit = unit.type_as(x)
        return unit if self.weight is None else unit * self.weight


class Block(nn.Module):
    """Attention and a feed-forward layer, shifted, scaled and gated by a condition a cell.

    Args:
        dim: width D.
        heads: attention heads.
        hidden: width of the feed-forward layer.
        places: row and column of each position (L, 2), in the order of the sequence.
        dropout: dropout after attention.
        attention_dropout: dropout of attention weights.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        hidden: int,
        places: Tensor,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(dim, affine=False), Norm(dim, affine=False)
        self.attn = Attention(
            dim, heads, places=places, dropout=dropout, attention_dropout=attention_dropout
        )
        self.mlp = Mlp(dim, hidden)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        """Map (B, L, D) under conditions (B, cells, D) and a mask (1, 1, L, L) to be added."""
        vectors = self.ada_lin(cond).repeat_interleave(x.shape[1] // cond.shape[1], dim=1)
        gate1, gate2, scale1, scale2, shift1, shift2 = vectors.chunk(6, dim=-1)  # B L D each
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, mask)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Attention(nn.Module):
    """Self-attention under a mask, queries and keys turned by their places."""

    def __init__(
        self, dim: int, heads: int, *, places: Tensor, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, attention_dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)
        self.rope = Rope(places, dim // heads)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (B, L, D)."""
        B, L, D = x.shape
        qkv = self.qkv(x).reshape(B, L, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        rate = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(
            self.rope(q), self.rope(k), v, attn_mask=mask, dropout_p=rate
        )
        return self.proj_drop(self.proj(y.transpose(1, 2).reshape(B, L, D)))


class Rope(nn.Module):
    """Turns neighbouring channels, by the row in the first half and by the column in the second."""

    def __init__(self, places: Tensor, width: int) -> None:
        super().__init__()
        half = width // 2
        freqs = 10000.0 ** (-torch.arange(0, half, 2, dtype=torch.float32) / half)
        angles = (places[..., None] * freqs).flatten(1).repeat_interleave(2, dim=-1)  # L width
        self.freqs: Tensor
        self.freqs_cos: Tensor
        self.freqs_sin: Tensor
        self.register_buffer("freqs", freqs)
        self.register_buffer("freqs_cos", angles.cos())
        self.register_buffer("freqs_sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, heads, L, width)."""
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return x * self.freqs_cos + torch.stack((-b, a), dim=-1).flatten(-2) * self.freqs_sin


class Mlp(nn.Module):
    """fc2(gelu(fc1_g x) * fc1_x x), with biases."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(dim, hidden)
        self.fc1_x = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D)."""
        return self.fc2(F.gelu(self.fc1_g(x)) * self.fc1_x(x))
