"""The perceptual term of a recipe: LPIPS, or a network that is installed if its weights are not."""

from __future__ import annotations

import logging
from pathlib import Path

from argen.evaluation.efficientnet import PIXEL_MEAN, PIXEL_STD, load_efficientnet_lite0
from argen.tokenizers.lpips import LPIPS, VGG_SOURCE
from argen.tokenizers.perceptual import FeatureDistance, Frozen

# The last block before each halving, and the last of all: 1/2 to 1/32 of the picture's sides.
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
        size: smaller pictures are enlarged to this side for EfficientNet-Lite0.
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
