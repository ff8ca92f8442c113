"""A discriminator that looks through a frozen, trained network (arXiv 2301.09515).

VAR's tokenizer recipe uses DINO ViT-S/16 and batch norms synchronised over processes; any network
whose parts give maps or tokens will do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from argen.errors import UserError
from argen.tokenizers.perceptual import IMAGENET_MEAN, IMAGENET_STD, TappedNetwork


class Residual(nn.Module):
    """x plus what a branch makes of it, variance kept."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, L) to the same shape."""
        return (x + self.branch(x)) * math.sqrt(0.5)


def conv_block(channels: int, kernel: int) -> nn.Sequential:
    """Return a 1-D convolution around the ends, batch norm and leaky ReLU."""
    conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(conv), nn.BatchNorm1d(channels), nn.LeakyReLU(0.2))


class FeatureDiscriminator(nn.Module):
    """One small head of 1-D convolutions on each tapped map of a frozen network.

    Args:
        network: takes pictures normalised by `mean` and `std`; frozen, and not saved.
        taps: names of the submodules whose output is judged: maps (B, C, h, w) or tokens (B, L, C).
        channels: C of each tap.
        kernel: kernel of the residual convolution in the middle of a head.
        size: side that pictures are resized to; 0 leaves them.
        mean: subtracted from pictures in [0, 1], per channel.
        std: they are then divided by it.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        taps: Sequence[str],
        channels: Sequence[int],
        kernel: int = 9,
        size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if len(taps) != len(channels):
            raise UserError(f"{len(taps)} taps need as many channels, not {len(channels)}.")
        self.size = size
        self.eyes = TappedNetwork(network, taps=taps, mean=mean, std=std)
        self.heads = nn.ModuleList(
            nn.Sequential(
                conv_block(width, 1),
                Residual(conv_block(width, kernel)),
                spectral_norm(nn.Conv1d(width, 1, 1)),
            )
            for width in channels
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to logits (B, L), those of all taps in a row."""
        if self.size and tuple(images.shape[2:]) != (self.size, self.size):
            images = F.interpolate(
                images, size=(self.size, self.size), mode="bilinear", antialias=True
            )
        logits = []
        for seen, head in zip(self.eyes(images), self.heads):
            x_BCL = seen.flatten(2) if seen.ndim == 4 else seen.transpose(1, 2)
            logits.append(head(x_BCL).flatten(1))
        return torch.cat(logits, dim=1)
