"""Augmentations that gradients pass through, so that a discriminator learns from few images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from argen.errors import UserError

POLICIES = ("color", "translation", "cutout")


class DiffAugment(nn.Module):
    """Differentiable augmentation (arXiv 2006.10738): colour, shifts by an eighth, cut-outs.

    Draws from torch's generator, anew for each image.

    Args:
        policies: any of `color`, `translation`, `cutout`.
        probability: share of images that are changed at all.
    """

    def __init__(self, *, policies: Sequence[str] = POLICIES, probability: float = 1.0) -> None:
        super().__init__()
        unknown = [policy for policy in policies if policy not in POLICIES]
        if unknown:
            raise UserError(f"Unknown policy {unknown[0]!r}; use any of {', '.join(POLICIES)}.")
        if not 0.0 <= probability <= 1.0:
            raise UserError(f"probability must lie in [0, 1], not {probability}.")
        self.policies, self.probability = tuple(policies), probability

    def forward(self, images: Tensor) -> Tensor:
        """Return augmented images, same shape (B, 3, H, W)."""
        x = images
        if "color" in self.policies:
            x = _color(x)
        if "translation" in self.policies:
            x = _shift(x)
        if "cutout" in self.policies:
            x = _cut(x)
        if self.probability < 1.0:
            chosen = _draw(x) < self.probability
            x = torch.where(chosen, x, images)
        return x


def _draw(x: Tensor) -> Tensor:
    """Return one uniform number an image, (B, 1, 1, 1)."""
    return torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype)


def _color(x: Tensor) -> Tensor:
    """Change brightness by up to a half, saturation by 0 to 2, contrast by 0.5 to 1.5."""
    x = x + _draw(x) - 0.5
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * _draw(x))
    middle = x.mean((1, 2, 3), keepdim=True)
    return middle + (x - middle) * (0.5 + _draw(x))


def _places(x: Tensor, axis: int) -> Tensor:
    """Return the indices of an axis, shaped to broadcast over (B, 1, H, W)."""
    shape = [1, 1, 1, 1]
    shape[axis] = x.shape[axis]
    return torch.arange(x.shape[axis], device=x.device).view(shape)


def _shift(x: Tensor) -> Tensor:
    """Move each image by up to an eighth of its sides; what comes in is 0."""
    for axis in (2, 3):
        side = x.shape[axis]
        reach = round(side / 8)
        by = ((2 * reach + 1) * _draw(x)).floor().long() - reach
        source = _places(x, axis) - by
        inside = (source >= 0) & (source < side)
        x = x.gather(axis, source.clamp(0, side - 1).expand_as(x)) * inside
    return x


def _cut(x: Tensor) -> Tensor:
    """Set a rectangle of half the sides to 0, its centre anywhere."""
    hidden = torch.ones(len(x), 1, 1, 1, dtype=torch.bool, device=x.device)
    for axis in (2, 3):
        side = x.shape[axis]
        half = side // 4
        centre = (side * _draw(x)).floor().long()
        places = _places(x, axis)
        hidden = hidden & (places >= centre - half) & (places < centre - half + side // 2)
    return x * ~hidden
