"""The frozen vision model that latents are aligned with: a local one, or the one installed."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from argen.errors import CheckpointError, UserError
from argen.evaluation.efficientnet import PIXEL_MEAN, PIXEL_STD, load_efficientnet_lite0
from argen.tokenizers.alignment import FrozenFeatures
from argen.tokenizers.perceptual import TappedNetwork

TAP, TAP_WIDTH, TAP_FACTOR = "blocks.10", 112, 16  # the last block before the fifth halving

log = logging.getLogger(__name__)


def foundation_features(
    path: str | Path | None = None, *, size: int = 224, leading: int = 1
) -> FrozenFeatures:
    """Return feature maps of a vision transformer, or without one those of EfficientNet-Lite0.

    The second needs no download but knows less of pictures; published results were reached with
    DINOv2 ViT-L/14 at 224 px. It says so in the log.

    Args:
        path: directory of a model as the transformers library saves it, e.g. DINOv2 or MAE.
        size: pictures are resized to this side; it decides how fine the feature map is.
        leading: class and register tokens before those of the picture's grid.

    Raises:
        CheckpointError: if the directory is missing or holds no such model.
        UserError: if the transformers library is not installed.
    """
    if path is None:
        log.warning(
            "No vision model was given, so latents are aligned with EfficientNet-Lite0. For "
            "DINOv2 save facebook/dinov2-large to a directory and give its place (path=DIR)."
        )
        network, _ = load_efficientnet_lite0()
        mean, std = PIXEL_MEAN / 255, PIXEL_STD / 255
        tapped = TappedNetwork(network, taps=(TAP,), mean=(mean,) * 3, std=(std,) * 3)
        return FrozenFeatures(tapped, dim=TAP_WIDTH, size=size)
    if find_spec("transformers") is None:
        raise UserError("Reading a vision model needs transformers: pip install 'argen[text]'.")
    if not (Path(path) / "config.json").is_file():
        raise CheckpointError(
            f"{path} is no model directory (no config.json); save one there with save_pretrained."
        )
    from transformers import AutoModel

    try:
        # A masked autoencoder would hide most of the picture from itself.
        hide = {"mask_ratio": 0.0} if "mae" in (Path(path) / "config.json").read_text() else {}
        model = AutoModel.from_pretrained(str(path), local_files_only=True, **hide)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a vision model ({error}).") from error
    return FrozenFeatures(model, dim=int(model.config.hidden_size), size=size, leading=leading)
