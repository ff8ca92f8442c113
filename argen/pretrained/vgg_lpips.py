"""Learned perceptual similarity over VGG16, from files of weights that the user has."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import CheckpointError, UserError
from argen.pretrained.tapped import Frozen, unit_channels
from argen.runtime.checkpoint import read_weights

# What LPIPS was calibrated with: ImageNet's numbers on the scale of [-1, 1].
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

VGG_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Place of each convolution in torchvision's `vgg16().features`.
VGG_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG_SOURCE = "https://download.pytorch.org/models/vgg16-397923af.pth"


class VGG16(nn.Module):
    """The convolutions of VGG16 (arXiv 1409.1556), giving the last map of each of five scales."""

    def __init__(self) -> None:
        super().__init__()
        width, stages = 3, []
        for widths in VGG_WIDTHS:
            convs: list[nn.Module] = []
            for wider in widths:
                convs += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU()]
                width = wider
            stages.append(nn.Sequential(*convs))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) to five maps (B, C, H / 2^i, W / 2^i), after the ReLU."""
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if i else x)
            maps.append(x)
        return maps


class LPIPS(Frozen):
    """Learned perceptual similarity over VGG16 (arXiv 1801.03924), version 0.1.

    Args:
        vgg16: file of torchvision's ImageNet VGG16.
        heads: file of the calibrated weights of the five maps (`lin0` ... `lin4`); if not given,
            the copy that the installed torchmetrics brings along.

    Raises:
        CheckpointError: if a file is missing or holds something else.
    """

    def __init__(self, *, vgg16: str | Path, heads: str | Path | None = None) -> None:
        super().__init__()
        if not Path(vgg16).is_file():
            raise CheckpointError(
                f"There are no VGG16 weights at {vgg16}: download {VGG_SOURCE} and give its place, "
                "or use the EfficientNet-Lite0 distance, which needs no download."
            )
        self.vgg = VGG16()
        self.vgg.load_state_dict(_vgg_weights(read_weights(vgg16), source=str(vgg16)))
        path = _installed_heads() if heads is None else Path(heads)
        for i, weight in enumerate(_head_weights(read_weights(path), source=str(path))):
            self.register_buffer(f"head{i}", weight)
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor(LPIPS_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(LPIPS_SCALE).view(1, 3, 1, 1))
        self.freeze()

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the mean distance of two batches, a scalar."""
        if min(images.shape[2:]) < 16:
            raise UserError(
                f"LPIPS needs images of at least 16 px, not {images.shape[2]}x{images.shape[3]}."
            )
        with torch.no_grad():
            theirs = self.vgg((target - self.shift) / self.scale)
        ours = self.vgg((images - self.shift) / self.scale)
        distance = images.new_zeros(())
        for i, (a, b) in enumerate(zip(ours, theirs)):
            difference = (unit_channels(a) - unit_channels(b)).square()  # B C h w
            distance = distance + (difference * getattr(self, f"head{i}")).sum(1).mean()
        return distance


def _vgg_weights(weights: Any, *, source: str) -> dict[str, Tensor]:
    """Translate torchvision's keys."""
    renamed, place = {}, iter(VGG_PLACES)
    for i, widths in enumerate(VGG_WIDTHS):
        for j in range(len(widths)):
            key = f"features.{next(place)}"
            for name in ("weight", "bias"):
                if not isinstance(weights, Mapping) or f"{key}.{name}" not in weights:
                    raise CheckpointError(
                        f"{source} has no {key}.{name}; it is not torchvision's VGG16 "
                        f"({VGG_SOURCE})."
                    )
                renamed[f"stages.{i}.{2 * j}.{name}"] = weights[f"{key}.{name}"]
    return renamed


def _head_weights(weights: Any, *, source: str) -> list[Tensor]:
    heads = []
    for i, widths in enumerate(VGG_WIDTHS):
        key = f"lin{i}.model.1.weight"
        found = weights.get(key) if isinstance(weights, Mapping) else None
        if found is None or found.numel() != widths[-1]:
            raise CheckpointError(f"{source} has no {key} of {widths[-1]} numbers for VGG16.")
        heads.append(found.view(1, -1, 1, 1))
    return heads


def _installed_heads() -> Path:
    """Return the file of calibrated weights inside torchmetrics (Apache-2.0)."""
    found = find_spec("torchmetrics")
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / "functional" / "image" / "lpips_models" / "vgg.pth"
        if path.is_file():
            return path
    raise CheckpointError(
        "torchmetrics, whose copy of the LPIPS heads would be used, is not installed: "
        "run `pip install torchmetrics`, or give heads=FILE."
    )
