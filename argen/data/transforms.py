"""From an image file to the pixels a network sees; every random choice is named by a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from argen.errors import UserError
from argen.images.pixels import Size

RESAMPLE = {
    "adm": Image.Resampling.BICUBIC,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


def resize(image: Image.Image, size: Size) -> Image.Image:
    """Scale to (height, width) with Lanczos, whatever the image's proportions."""
    wanted = (size[1], size[0])
    return image if image.size == wanted else image.resize(wanted, Image.Resampling.LANCZOS)


def center_crop(image: Image.Image, size: Size) -> Image.Image:
    """Scale until (height, width) is just covered, then cut out the centre.

    While the image is at least twice as large as needed it is halved by a box filter, then
    scaled bicubically: the preprocessing of ADM (arXiv 2105.05233) that the ImageNet generators
    share, extended to other proportions than square.
    """
    height, width = size
    image = cover(image, size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def cover(image: Image.Image, size: Size, resample: str = "adm") -> Image.Image:
    """Scale, keeping the proportions, until (height, width) is just covered.

    Args:
        image: an RGB image.
        size: (height, width).
        resample: a filter of Pillow's, or `adm`: halves by a box filter as long as the image is at
            least twice as large as needed, then bicubic.
    """
    height, width = size
    while resample == "adm" and min(image.width / width, image.height / height) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    covering = (
        max(width, round(image.width * scale)),
        max(height, round(image.height * scale)),
    )
    return image.resize(covering, RESAMPLE[resample])


def shift(pixels: Tensor, dy: int, dx: int, *, pad: str = "edge") -> Tensor:
    """Move an image (3, H, W) down by `dy` and right by `dx` pixels.

    The strip that opens repeats the border (`edge`) or is `white`.
    """
    height, width = pixels.shape[-2:]
    rows = torch.arange(-dy, height - dy)
    columns = torch.arange(-dx, width - dx)
    moved = pixels.index_select(-2, rows.clamp(0, height - 1))
    moved = moved.index_select(-1, columns.clamp(0, width - 1))
    if pad == "white":
        moved[..., (rows < 0) | (rows >= height), :] = 255
        moved[..., :, (columns < 0) | (columns >= width)] = 255
    return moved


def flip(pixels: Tensor) -> Tensor:
    """Mirror an image (..., W) left to right."""
    return pixels.flip(-1)


class Cropping(Protocol):
    """What cuts (height, width) pixels out of an image, as a seed decides."""

    def __call__(self, image: Image.Image, size: Size, seed: int) -> Image.Image:
        """Return the part of an RGB image."""

    def describe(self) -> str:
        """Return a few words for manifests."""


@dataclass(frozen=True)
class Augment:
    """Random shift and mirror image of uint8 pixels, decided by a seed.

    Attributes:
        shift: move by up to this many pixels in each direction; 0 for none.
        flip: mirror every second image on average.
        pad: what fills the strip that a shift opens, `edge` or `white`.
        crop: how an image becomes the pixels that are shifted and mirrored; None for the plain
            ones. The data set applies it, since it alone has the whole image.
    """

    shift: int = 0
    flip: bool = False
    pad: Literal["edge", "white"] = "edge"
    crop: Cropping | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.shift, int) or self.shift < 0:
            raise UserError(f"shift={self.shift} must be a number of pixels, 0 for no shift.")
        if self.pad not in ("edge", "white"):
            raise UserError(f"pad={self.pad!r} must be 'edge' or 'white'.")

    def __call__(self, pixels: Tensor, seed: int) -> Tensor:
        """Return the image (3, H, W) as it looks under `seed`."""
        rng = random.Random(seed)
        dy, dx = (int(rng.random() * (2 * self.shift + 1)) - self.shift for _ in range(2))
        mirrored = rng.random() < 0.5
        if dy or dx:
            pixels = shift(pixels, dy, dx, pad=self.pad)
        return flip(pixels) if self.flip and mirrored else pixels

    def describe(self) -> str:
        """Return a few words for manifests."""
        moves = [self.crop.describe()] if self.crop else []
        moves += [f"shift {self.shift} px ({self.pad})"] if self.shift else []
        moves += ["mirror"] if self.flip else []
        return " + ".join(moves) or "none"
