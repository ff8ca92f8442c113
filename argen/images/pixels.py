"""Pixels: whole numbers from 0 to 255 or floats in [-1, 1], and the size of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from argen.errors import UserError

ROUNDINGS = ("nearest", "truncate")
Size = tuple[int, int]  # (height, width)


def as_size(image_size: int | Sequence[int]) -> Size:
    """Return (height, width) from one number or a pair.

    Raises:
        UserError: unless these are one or two positive whole numbers.
    """
    sides = list(image_size) if isinstance(image_size, Sequence) else [image_size] * 2
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
        raise UserError(
            f"image_size={image_size} must be one positive number of pixels or a pair "
            f"[height, width]."
        )
    return sides[0], sides[1]


def to_uint8(images: Tensor, *, rounding: str = "nearest") -> Tensor:
    """Bring floats in [-1, 1] to 256 levels, as a saved PNG would hold them.

    Args:
        images: any shape; values outside [-1, 1] are clipped; uint8 passes unchanged.
        rounding: `nearest` level, or `truncate` to the level below, as `.byte()` does in some
            published evaluations.

    Raises:
        UserError: some values are not finite, or the rounding is unknown.
    """
    if rounding not in ROUNDINGS:
        raise UserError(f"Unknown rounding {rounding!r}; use {' or '.join(ROUNDINGS)}.")
    if images.dtype == torch.uint8:
        return images
    if not bool(torch.isfinite(images).all()):
        raise UserError(
            "Images hold values that are not finite (NaN or infinity); "
            "the model or its sampling settings are at fault, so nothing was scored."
        )
    levels = images.float().add(1).mul(127.5)
    levels = levels.round() if rounding == "nearest" else levels.floor()
    return levels.clamp(0, 255).to(torch.uint8)


def to_float(pixels: Tensor) -> Tensor:
    """Map uint8 levels to floats in [-1, 1]; `to_uint8` gives the same levels back."""
    return pixels.float().div(127.5).sub(1)
