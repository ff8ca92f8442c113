"""One loss scaled so that it pulls on a layer as hard as another one."""

from __future__ import annotations

import torch
from torch import Tensor


def adaptive_weight(
    reconstruction: Tensor,
    other: Tensor,
    layer: Tensor,
    *,
    low: float = 0.0,
    high: float = 1e4,
    eps: float = 1e-4,
) -> Tensor:
    """Return |d reconstruction| / |d other| at a layer's weight, detached (VQGAN, 2012.09841).

    Args:
        reconstruction: the weighted pixel and perceptual terms, a scalar.
        other: the unweighted adversarial (or alignment) loss, a scalar.
        layer: weight of the decoder's (or encoder's) last layer, part of the graph of both.
        low: least weight.
        high: largest weight.
        eps: added to the denominator.
    """
    (ours,) = torch.autograd.grad(reconstruction, layer, retain_graph=True)
    (theirs,) = torch.autograd.grad(other, layer, retain_graph=True)
    return (ours.norm() / (theirs.norm() + eps)).clamp(low, high).detach()
