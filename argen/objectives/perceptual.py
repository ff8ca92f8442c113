"""Distances between images as a frozen network sees them: the perceptual term of a recipe.

Each takes a batch and its target (B, 3, H, W) in [-1, 1] and gives the mean distance, a scalar with
gradients for the batch alone. The networks are frozen, never in training mode, and not saved.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import CheckpointError
from argen.pretrained.efficientnet import PIXEL_MEAN, PIXEL_STD, load_efficientnet_lite0
from argen.pretrained.tapped import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Frozen,
    TappedNetwork,
    unit_channels,
)
from argen.pretrained.vgg_lpips import LPIPS, VGG_SOURCE
from argen.runtime.checkpoint import read_weights

CONVNEXT_SOURCE = "https://download.pytorch.org/models/convnext_small-0c510722.pth"

# The last block before each halving, and the last of all: 1/2 to 1/32 of the image's sides.
TAPS = ("blocks.0", "blocks.2", "blocks.4", "blocks.10", "blocks.15")

log = logging.getLogger(__name__)


def perceptual_distance(
    *, vgg16: str | Path | None = None, heads: str | Path | None = None, size: int = 64
) -> Frozen:
    """Return LPIPS over VGG16 or, without its weights, the same over EfficientNet-Lite0.

    The second needs no download but is no LPIPS: its values are on another scale, and numbers of
    published recipes were not made with it. It says so in the log.

    Args:
        vgg16: file of torchvision's VGG16; EfficientNet-Lite0 if not given.
        heads: see `LPIPS`.
        size: smaller images are enlarged to this side for EfficientNet-Lite0.
    """
    if vgg16:
        return LPIPS(vgg16=vgg16, heads=heads)
    log.warning(
        "No VGG16 weights were given, so the perceptual term compares features of "
        "EfficientNet-Lite0, not LPIPS. For LPIPS download %s and give its place (vgg16=FILE).",
        VGG_SOURCE,
    )
    network, _ = load_efficientnet_lite0()
    mean, std = PIXEL_MEAN / 255, PIXEL_STD / 255
    return FeatureDistance(network, taps=TAPS, mean=(mean,) * 3, std=(std,) * 3, size=size)


class FeatureDistance(Frozen):
    """The form of LPIPS over any frozen network, without calibration: all channels count alike.

    For each tapped map (B, C, h, w): squared distance of unit-length feature vectors, mean over
    pixels; the mean over maps lies in [0, 4].

    Args:
        network: see `TappedNetwork`, as for what follows.
        taps: the parts whose maps are compared.
        mean: of the images.
        std: of the images.
        size: smaller images are enlarged until the shorter side has this many pixels.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        taps: Sequence[str],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        size: int = 0,
    ) -> None:
        super().__init__()
        self.tapped, self.size = TappedNetwork(network, taps=taps, mean=mean, std=std), size
        self.freeze()

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the tapped maps (B, C, h, w) of images (B, 3, H, W) in [-1, 1]."""
        short = min(images.shape[2:])
        if short < self.size:
            images = F.interpolate(images, scale_factor=self.size / short, mode="bilinear")
        return self.tapped(images)

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the mean distance of two batches, a scalar."""
        with torch.no_grad():
            wanted = self.maps(target)
        distances = [
            (unit_channels(a) - unit_channels(b)).square().sum(1).mean()
            for a, b in zip(self.maps(images), wanted)
        ]
        return torch.stack(distances).mean()


class ConvNeXtDistance(Frozen):
    """Mean squared difference of the 1000 ImageNet logits of ConvNeXt-S (TiTok's perceptual term).

    Args:
        weights: file of torchvision's ConvNeXt-S.
        size: side that images are resized to, bilinear with antialiasing.

    Raises:
        CheckpointError: if the file is missing or holds something else.
    """

    def __init__(self, *, weights: str | Path | None, size: int = 224) -> None:
        super().__init__()
        from torchvision.models import convnext_small

        if not weights or not Path(weights).is_file():
            raise CheckpointError(
                f"The ConvNeXt distance needs its weights, and {weights or 'no file'} was given: "
                f"download {CONVNEXT_SOURCE} and give its place."
            )
        self.size = size
        with torch.device("meta"):  # Nothing is drawn that the file overwrites.
            self.network = convnext_small(weights=None)
        _load(self.network, read_weights(weights), source=str(weights), network="ConvNeXt-S")
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.freeze()

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (B, 1000) of images (B, 3, H, W) in [-1, 1]."""
        x = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        return self.network(((x + 1) / 2 - self.mean) / self.std)

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the mean distance of two batches, a scalar."""
        with torch.no_grad():
            wanted = self.logits(target)
        return F.mse_loss(self.logits(images), wanted)


def _load(module: nn.Module, weights: Any, *, source: str, network: str) -> None:
    try:
        module.load_state_dict(weights, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source} does not hold the weights of {network}.") from error
