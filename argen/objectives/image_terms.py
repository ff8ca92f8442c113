"""Pixel errors between a reconstruction and its image.

A term of an objective is a module with `forward(images, target)`, both (B, 3, H, W) in [-1, 1],
which gives a scalar with gradients for `images` alone. `l1` and `l2` come by their names; any
other, from here, from `argen.objectives.perceptual` or from a file of yours, comes by `_target_`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError


class PixelError(nn.Module):
    """A mean over images, channels and pixels.

    Args:
        unit_range: measure images in [0, 1], the range of recipes whose networks work there: half
            the absolute and a quarter of the squared error of [-1, 1].
    """

    always = True  # so cheap that it is logged even when its weight is 0

    def __init__(self, *, unit_range: bool = False) -> None:
        super().__init__()
        self.scale = 0.5 if unit_range else 1.0


class L1(PixelError):
    """Mean absolute error: in [0, 2], or in [0, 1] with `unit_range`."""

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the error of images (B, 3, H, W) in [-1, 1], a scalar."""
        return self.scale * F.l1_loss(images, target)


class L2(PixelError):
    """Mean squared error: in [0, 4], or in [0, 1] with `unit_range`."""

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the error of images (B, 3, H, W) in [-1, 1], a scalar."""
        return self.scale**2 * F.mse_loss(images, target)


def with_pixel_errors(terms: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the terms of an objective: `l1` and `l2`, unless others have those names, and these.

    Raises:
        UserError: if one is not a module, such as the name of a term that does not ship.
    """
    for name, term in terms.items():
        if not isinstance(term, nn.Module):
            raise UserError(
                f"image_terms.{name} is {term!r}, but a term is a module: give _target_, the path "
                "of a class whose forward(images, target) returns a scalar."
            )
    return {"l1": L1(), "l2": L2(), **terms}
