"""The discriminator of VAR's tokenizer recipe: over DINO, or over the network that is installed."""

from __future__ import annotations

import logging
from pathlib import Path

from argen.evaluation.efficientnet import PIXEL_MEAN, PIXEL_STD, load_efficientnet_lite0
from argen.tokenizers.dino import SOURCE, load_dino
from argen.tokenizers.feature_discriminator import FeatureDiscriminator

# The last block before each halving, from a quarter of the picture's sides down.
TAPS, WIDTHS = ("blocks.2", "blocks.4", "blocks.10", "blocks.15"), (24, 40, 112, 320)

log = logging.getLogger(__name__)


def dino_discriminator(
    path: str | Path | None = None, *, kernel: int = 9, size: int = 224
) -> FeatureDiscriminator:
    """Return heads on frozen DINO ViT-S/16 or, without its weights, on EfficientNet-Lite0.

    The second needs no download, but published recipes were not made with it. It says so in the
    log.

    Args:
        path: file of DINO's ViT-S/16; EfficientNet-Lite0 if not given.
        kernel: kernel of the middle convolution of a head.
        size: side that pictures are resized to for EfficientNet-Lite0; DINO always sees 224 px.
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
