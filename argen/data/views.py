"""The versions of an image whose codes are stored: augmented, mirrored, or ten crops."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from argen.data.draws import SampleRequest, hash_seed
from argen.data.images import ImageDataset, ImageSource
from argen.data.transforms import flip
from argen.errors import UserError
from argen.images.pixels import Size, to_float

Views = int | str
# Corners, then the middle, as torchvision's ten crops: share of the room above, and to the left.
PLACES = {
    "top-left": (0.0, 0.0),
    "top-right": (0.0, 1.0),
    "bottom-left": (1.0, 0.0),
    "bottom-right": (1.0, 1.0),
    "centre": (0.5, 0.5),
}


@dataclass(frozen=True)
class View:
    """One stored version.

    Attributes:
        name: for the manifest.
        number: which augmentation of the data set; 0 for none.
        place: where the crop of the larger image lies; None for the image itself.
        mirrored: left and right change places, before a crop.
    """

    name: str
    number: int = 0
    place: tuple[float, float] | None = None
    mirrored: bool = False

    def of(
        self, index: int, images: ImageDataset, larger: ImageDataset | None, *, seed: int
    ) -> tuple[int, Tensor]:
        """Return an image as it looks here, float (3, H, W) in [-1, 1], and which it is.

        That is `index`, or the stand-in's where the file cannot be read.
        """
        if self.number:
            item = images[SampleRequest(index, hash_seed("code view", seed, self.number, index))]
            return int(item["index"]), item["image"]
        whole = images if self.place is None else larger
        assert whole is not None
        shown, pixels = whole.load(index)
        if self.mirrored:
            pixels = flip(pixels)
        if self.place is not None:
            pixels = crop(pixels, images.size, self.place)
        return shown, to_float(pixels)


def crop(pixels: Tensor, size: Size, place: tuple[float, float]) -> Tensor:
    """Return the part of `size` of pixels (3, H, W), at a share of the room there is."""
    top, left = (
        round((have - want) * share) for have, want, share in zip(pixels.shape[1:], size, place)
    )
    return pixels[:, top : top + size[0], left : left + size[1]]


def views_of(views: Views, source: ImageSource, split: str) -> list[View]:
    """Return the views of one side; held-out images have the plain one alone.

    Args:
        views: a number (the image, then augmented ones as the data set says), `flip` (the image
            and its mirror image) or `ten_crop` (corners and middle of a larger image, and their
            mirror images).
        source: the images.
        split: `train` or `val`.
    """
    plain = View("plain")
    if isinstance(views, str) and views not in ("flip", "ten_crop"):
        raise UserError(f"Unknown views={views}; use a number, flip or ten_crop.")
    if isinstance(views, int) and views < 1:
        raise UserError(f"views={views} must be at least 1.")
    if split != "train":
        return [plain]
    if views == "flip":
        return [plain, View("mirrored", mirrored=True)]
    if isinstance(views, int):
        more = views - 1 if source.train.augment is not None else 0
        return [plain, *(View(f"augmented-{v}", number=v) for v in range(1, more + 1))]
    return [
        View(name + (" mirrored" if mirrored else ""), place=place, mirrored=mirrored)
        for mirrored in (False, True)
        for name, place in PLACES.items()
    ]


def larger_size(size: Size, crop_ratio: float) -> list[int]:
    """Return the side lengths that ten crops are taken from.

    Raises:
        UserError: the ratio leaves no room.
    """
    sides = [int(side * crop_ratio) for side in size]
    if crop_ratio > 4 or any(large <= side for large, side in zip(sides, size)):
        raise UserError(
            f"crop={crop_ratio} must make an image larger than {size[0]}x{size[1]}, e.g. 1.1."
        )
    return sides
