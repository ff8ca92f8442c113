"""Distances between pictures as a trained network sees them.

Each takes a batch and its target (B, 3, H, W) in [-1, 1] and gives the mean distance, a scalar with
gradients for the batch alone. The networks are frozen, never in training mode, and not saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.checkpoint import read_weights
from argen.errors import CheckpointError, UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
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
