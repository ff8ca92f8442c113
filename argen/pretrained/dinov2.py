"""DINOv2 features of images, from a directory of weights that the user has.

Letters: B batch, H W pixels, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.images.pixels import to_uint8
from argen.pretrained.base import FeatureExtractor, full_float32
from argen.runtime.files import sha256_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoV2Features(FeatureExtractor):
    """The normalised class token of a DINOv2 ViT (arXiv 2304.07193), as FD-DINOv2 takes it.

    Distances on these features follow people's judgement better than Inception's (arXiv
    2306.04675). Images are rounded to 8 bits, then resized as floats to `size` (bicubic with
    antialiasing, torch's `interpolate`): published numbers resize with Pillow, whose 8-bit rounding
    differs in the last level.

    Args:
        path: directory in the form of `transformers` (config.json, model.safetensors), e.g. a
            copy of facebook/dinov2-large.
        size: side in pixels, a multiple of the patch.

    Raises:
        UserError: no such directory, or `transformers` is not installed.
        CheckpointError: it holds something else.
    """

    name = "dinov2"

    def __init__(self, *, path: Path | str | None, size: int = 224) -> None:
        super().__init__()
        if not path or not (Path(path) / "config.json").is_file():
            raise UserError(
                f"Features of DINOv2 need a directory with config.json and model.safetensors, and "
                f"there is none at {path}: copy facebook/dinov2-large from a machine with a "
                "network and give its place, features_path=DIR."
            )
        try:
            from transformers import AutoModel
        except ImportError as error:
            raise UserError(
                "Features of DINOv2 need the package transformers: pip install 'argen[text]'."
            ) from error
        try:
            network = AutoModel.from_pretrained(
                str(path), local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} does not hold a DINOv2 model: {error}") from error
        if network.config.model_type not in ("dinov2", "dinov2_with_registers"):
            raise CheckpointError(f"{path} holds a {network.config.model_type}, not a DINOv2.")
        if size % network.config.patch_size:
            raise UserError(
                f"size={size} is not a multiple of this DINOv2's patch, "
                f"{network.config.patch_size} px."
            )
        self.network, self.size = network, size
        self.dim = int(network.config.hidden_size)
        self.sha256 = sha256_of(Path(path) / "model.safetensors")

    def protocol(self) -> dict[str, Any]:
        """Return the facts that fix the features."""
        return {
            "name": self.name,
            "dim": self.dim,
            "sha256": self.sha256,
            "resize": f"{self.size}x{self.size} bicubic antialias",
            "input": "uint8",
        }

    @torch.inference_mode()
    def forward(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        """Return {"pool": (B, D)}; see `FeatureExtractor.forward`."""
        x = to_uint8(images_B3HW).to(self.device).float() / 255  # (B, 3, H, W) in 0..1
        side = (self.size, self.size)
        if x.shape[2:] != side:
            x = F.interpolate(x, size=side, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = x.new_tensor(MEAN)[:, None, None], x.new_tensor(STD)[:, None, None]
        with full_float32(x.device):
            return {"pool": self.network((x - mean) / std).pooler_output.float()}
