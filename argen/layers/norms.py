"""Normalisation layers that keep their statistics in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError, suggest


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32 (arXiv 1910.07467).

    The normalised value is cast back to the input's type before the weight is applied, the order
    that Llama-style checkpoints were trained with.

    Args:
        dim: size D of the last axis.
        eps: added to the mean square.
        affine: whether there is a weight.
    """

    def __init__(self, dim: int, eps: float = 1e-5, *, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., D)."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return x32.to(x.dtype) if self.weight is None else x32.to(x.dtype) * self.weight


def _layer_norm(dim: int, eps: float, *, affine: bool) -> nn.Module:
    return nn.LayerNorm(dim, eps=eps, elementwise_affine=affine)


# What makes a norm of the last axis, of size `dim`.
NormFactory = Callable[[int], nn.Module]

# Norms by name: (dim, eps) to a norm. The plain ones have no weight and bias.
NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "rms": RMSNorm,
    "rms_plain": partial(RMSNorm, affine=False),
    "layer": partial(_layer_norm, affine=True),
    "layer_plain": partial(_layer_norm, affine=False),
}


def make_norm(norm: str | NormFactory, dim: int, eps: float) -> nn.Module:
    """Return a norm over the last axis.

    Args:
        norm: a name of `NORMS`, or what makes a norm from `dim`; in YAML, a `_target_` with
            `_partial_: true`.
        dim: size D of the last axis.
        eps: epsilon of the named ones; others bring their own.

    Raises:
        UserError: for an unknown name.
    """
    if not isinstance(norm, str):
        return norm(dim)
    if norm not in NORMS:
        raise UserError(
            f"Unknown norm {norm!r}; use {', '.join(NORMS)}, or a _target_ of your own with "
            f"_partial_: true.{suggest(norm, NORMS)}"
        )
    return NORMS[norm](dim, eps)


class UnitNorm(nn.Module):
    """Unit vectors, times a learned factor a head where `heads` is given.

    For queries and keys of cosine attention (Swin v2, arXiv 2111.09883; VAR, arXiv 2404.02905):
    the factor is exp(min(log_scale, log 100)), from 4 on, and takes the place of the softmax's
    1 / sqrt(width), which is undone here.

    Args:
        dim: size of the last axis.
        heads: size of the axis before it, for queries; 0 for keys.
    """

    def __init__(self, dim: int, heads: int = 0) -> None:
        super().__init__()
        self.undo = dim**0.5
        start = torch.full((heads,), math.log(4.0))
        self.log_scale = nn.Parameter(start) if heads else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., heads, dim), in float32."""
        unit = F.normalize(x.float(), dim=-1)
        if self.log_scale is not None:
            scale = self.log_scale.float().clamp(max=math.log(100.0)).exp() * self.undo
            unit = unit * scale[:, None]
        return unit.to(x.dtype)
