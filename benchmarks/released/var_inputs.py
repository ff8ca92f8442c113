"""What VAR reads while it trains: the sums of coarser scales, as its trainer makes them each step.

FoundationVision/VAR (MIT), written anew. Where argen differs: sums there are made in place, and a
scale's convolution is looked up at every use.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Quantizer(nn.Module):
    """The tokenizer's frozen codebook and smoothing convolutions.

    Args:
        pyramid: argen's, whose weights are taken over; they are in no state dict.
    """

    def __init__(self, pyramid: Any) -> None:
        super().__init__()
        self.sides = [side for side, _ in pyramid.scales]
        self.ratio = pyramid.phis[0].ratio
        phis = len(pyramid.phis)
        margin = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
        self.ticks = np.linspace(margin, 1 - margin, phis)
        self.embedding: Tensor
        self.register_buffer("embedding", pyramid.codebook.weight.detach(), persistent=False)
        for i, phi in enumerate(pyramid.phis):
            self.register_buffer(f"weight{i}", phi.weight.detach(), persistent=False)
            self.register_buffer(f"bias{i}", phi.bias.detach(), persistent=False)

    def inputs(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Return the sum of all coarser scales at each scale but the first, (B, L - n_0, C).

        Args:
            maps: ids (B, n) of each scale.
        """
        B, C, side = len(maps[0]), self.embedding.shape[1], self.sides[-1]
        total = torch.zeros(B, C, side, side, device=self.embedding.device)
        read, last = [], len(self.sides) - 1
        for k in range(last):
            rows = F.embedding(maps[k], self.embedding).transpose_(1, 2)
            h = rows.view(B, C, self.sides[k], self.sides[k])
            total.add_(self._smooth(F.interpolate(h, (side, side), mode="bicubic"), k / last))
            after = self.sides[k + 1]
            shrunk = F.interpolate(total, (after, after), mode="area")
            read.append(shrunk.view(B, C, -1).transpose(1, 2))
        return torch.cat(read, dim=1)

    def _smooth(self, h: Tensor, place: float) -> Tensor:
        """Apply the convolution whose tick is nearest to a place in [0, 1]."""
        i = np.argmin(np.abs(self.ticks - place)).item()
        weight, bias = getattr(self, f"weight{i}"), getattr(self, f"bias{i}")
        return h.mul(1 - self.ratio) + F.conv2d(h, weight, bias, padding=1).mul_(self.ratio)
