"""A discriminator that looks through a frozen, trained network (arXiv 2301.09515).

VAR's tokenizer recipe uses DINO ViT-S/16 and batch norms synchronised over processes; any network
whose parts give maps or tokens will do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from argen.errors import UserError
from argen.pretrained.dino import SOURCE, load_dino
from argen.pretrained.efficientnet import PIXEL_MEAN, PIXEL_STD, load_efficientnet_lite0
from argen.pretrained.tapped import IMAGENET_MEAN, IMAGENET_STD, TappedNetwork

# The last block before each halving, from a quarter of the image's sides down.
TAPS, WIDTHS = ("blocks.2", "blocks.4", "blocks.10", "blocks.15"), (24, 40, 112, 320)

log = logging.getLogger(__name__)


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
        network: takes images normalised by `mean` and `std`; frozen, and not saved.
        taps: names of the submodules that the heads read: maps (B, C, h, w) or tokens (B, L, C).
        channels: C of each tap.
        kernel: kernel of the residual convolution in the middle of a head.
        size: side that images are resized to; 0 leaves them.
        mean: subtracted from images in [0, 1], per channel.
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
        self.backbone = TappedNetwork(network, taps=taps, mean=mean, std=std)
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
        for seen, head in zip(self.backbone(images), self.heads):
            x_BCL = seen.flatten(2) if seen.ndim == 4 else seen.transpose(1, 2)
            logits.append(head(x_BCL).flatten(1))
        return torch.cat(logits, dim=1)


def dino_discriminator(
    path: str | Path | None = None, *, kernel: int = 9, size: int = 224
) -> FeatureDiscriminator:
    """Return heads on frozen DINO ViT-S/16 or, without its weights, on EfficientNet-Lite0.

    The second needs no download, but published recipes were not made with it. It says so in the
    log.

    Args:
        path: file of DINO's ViT-S/16; EfficientNet-Lite0 if not given.
        kernel: kernel of the middle convolution of a head.
        size: side that images are resized to for EfficientNet-Lite0; DINO always sees 224 px.
    """
    if path:
        network = load_dino(path)
        taps = [f"readings.{i}" for i in range(len(network.readings))]
        width = network.pos_embed.shape[-1]
        return FeatureDiscriminator(
            network, taps=taps, channels=[width] * len(taps), kernel=kernel, size=224
        )
    log.warning(
        "No DINO weights were given, so the discriminator looks through EfficientNet-Lite0. For "
        "VAR's recipe download the backbone from %s and give its place (path=FILE).",
        SOURCE,
    )
    lite, _ = load_efficientnet_lite0()
    mean, std = PIXEL_MEAN / 255, PIXEL_STD / 255
    return FeatureDiscriminator(
        lite, taps=TAPS, channels=WIDTHS, kernel=kernel, size=size, mean=(mean,) * 3, std=(std,) * 3
    )
