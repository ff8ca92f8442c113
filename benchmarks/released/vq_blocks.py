"""The blocks of LlamaGen's VQ-16 (FoundationVision/LlamaGen, MIT), written anew.

Where argen differs: there queries, keys and values are three convolutions, attention two products
around a softmax, and SiLU is two operations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """norm, swish, 3x3, twice; added to the input, which a 1x1 widens where it must."""

    def __init__(self, width: int, wider: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = norm(width)
        self.conv1 = nn.Conv2d(width, wider, 3, padding=1)
        self.norm2 = norm(wider)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(wider, wider, 3, padding=1)
        if width != wider:
            self.nin_shortcut = nn.Conv2d(width, wider, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h, w)."""
        h = self.conv1(swish(self.norm1(x)))
        h = self.conv2(self.dropout(swish(self.norm2(h))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class Attention(nn.Module):
    """One head over all pixels, its weights written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        y = self.norm(x)
        q_BCn, k_BCn, v_BCn = (part(y).flatten(2) for part in (self.q, self.k, self.v))
        scores_Bnn = torch.bmm(q_BCn.transpose(1, 2), k_BCn) * x.shape[1] ** -0.5
        weights_Bnn = F.softmax(scores_Bnn, dim=2)
        seen_BCn = torch.bmm(v_BCn, weights_Bnn.transpose(1, 2))
        return x + self.proj_out(seen_BCn.view_as(x))


class Downsample(nn.Module):
    """Zeros at the right and below, then 3x3 with stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h/2, w/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Pixels repeated, then 3x3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def middle(width: int, dropout: float) -> nn.Sequential:
    """Return the blocks at the lowest resolution."""
    return nn.Sequential(
        Residual(width, width, dropout), Attention(width), Residual(width, width, dropout)
    )


def norm(width: int) -> nn.GroupNorm:
    """Return the norm before every convolution but the first."""
    return nn.GroupNorm(32, width, eps=1e-6)


def swish(x: Tensor) -> Tensor:
    """Return SiLU as two operations."""
    return x * torch.sigmoid(x)
