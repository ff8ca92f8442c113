"""Distances between pictures as a trained network sees them.

Each takes a batch and its target (B, 3, H, W) in [-1, 1] and gives the mean distance, a scalar with
gradients for the batch alone. The networks are frozen, never in training mode, and not saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.checkpoint import read_weights
from argen.errors import CheckpointError, UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What LPIPS was calibrated with: ImageNet's numbers on the scale of [-1, 1].
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

VGG_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Place of each convolution in torchvision's `vgg16().features`.
VGG_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG_SOURCE = "https://download.pytorch.org/models/vgg16-397923af.pth"
CONVNEXT_SOURCE = "https://download.pytorch.org/models/convnext_small-0c510722.pth"


class Frozen(nn.Module):
    """Stays in evaluation mode and out of checkpoints: its weights live in the file they came from.

    Subclasses call `freeze` when they are built.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_bring_along)

    def freeze(self) -> None:
        """Take all parameters out of training."""
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode: dropout in a distance would only be noise."""
        return super().train(False)


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]


def _bring_along(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = [*module.named_parameters(), *module.named_buffers()]
    state.update({prefix + key: value for key, value in own})


def unit_channels(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Return x (B, C, h, w) divided by its length over the channels."""
    # Inside the root, so that a pixel without any activation has a gradient.
    return x / (x.square().sum(1, keepdim=True) + eps).sqrt()


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
                f"LPIPS needs pictures of at least 16 px, not {images.shape[2]}x{images.shape[3]}."
            )
        with torch.no_grad():
            theirs = self.vgg((target - self.shift) / self.scale)
        ours = self.vgg((images - self.shift) / self.scale)
        distance = images.new_zeros(())
        for i, (a, b) in enumerate(zip(ours, theirs)):
            difference = (unit_channels(a) - unit_channels(b)).square()  # B C h w
            distance = distance + (difference * getattr(self, f"head{i}")).sum(1).mean()
        return distance


class TappedNetwork(Frozen):
    """The outputs of some parts of a frozen network, for pictures in [-1, 1].

    Args:
        network: takes pictures normalised by `mean` and `std`.
        taps: names of its submodules.
        mean: subtracted from pictures in [0, 1], per channel.
        std: they are then divided by it.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        taps: Sequence[str],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        known = [name for name, _ in network.named_modules() if name]
        missing = [tap for tap in taps if tap not in known]
        if missing or not taps:
            raise UserError(
                f"{type(network).__name__} has no part {', '.join(missing) or '(none given)'}; "
                f"taps are names such as {', '.join(known[:3])}."
            )
        self.network, self.taps = network, tuple(taps)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.freeze()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return what each tapped part gives for images (B, 3, H, W), in the order of the taps."""
        found: dict[str, Tensor] = {}

        def keeper(tap: str) -> Callable[[nn.Module, Any, Tensor], None]:
            def keep(_: nn.Module, __: Any, output: Tensor) -> None:
                found[tap] = output

            return keep

        # For this pass only: a hook kept by the network would outlive copies of this module.
        hooks = [
            self.network.get_submodule(tap).register_forward_hook(keeper(tap)) for tap in self.taps
        ]
        try:
            self.network(((images + 1) / 2 - self.mean) / self.std)
        finally:
            for hook in hooks:
                hook.remove()
        return [found[tap] for tap in self.taps]


class FeatureDistance(Frozen):
    """The form of LPIPS over any frozen network, without calibration: all channels count alike.

    For each tapped map (B, C, h, w): squared distance of unit-length feature vectors, mean over
    pixels; the mean over maps lies in [0, 4].

    Args:
        network: see `TappedNetwork`, as for what follows.
        taps: the parts whose maps are compared.
        mean: of the pictures.
        std: of the pictures.
        size: smaller pictures are enlarged until the shorter side has this many pixels.
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
        size: side that pictures are resized to, bilinear with antialiasing.

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
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source} does not hold the weights of {network}.") from error


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
