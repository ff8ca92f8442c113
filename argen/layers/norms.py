"""Normalisation layers that keep their statistics in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from argen.errors import UserError


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32 (arXiv 1910.07467).

    The normalised value is cast back to the input's type before the weight is applied, the order
    that Llama-style checkpoints were trained with.

    Args:
        dim: size D of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., D)."""
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return x32.to(x.dtype) * self.weight


def make_norm(kind: str, dim: int, eps: float) -> nn.Module:
    """Return a norm over the last axis.

    Args:
        kind: `rms`, `layer`, or `layer_plain` for a LayerNorm without weight and bias.
        dim: size D of the last axis.
        eps: epsilon.
    """
    if kind == "rms":
        return RMSNorm(dim, eps)
    if kind not in ("layer", "layer_plain"):
        raise UserError(f"Unknown norm {kind!r}; use rms, layer or layer_plain.")
    return nn.LayerNorm(dim, eps=eps, elementwise_affine=kind == "layer")
