"""Random crops of images scaled to a random size: the augmentation of most published tokenizers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from argen.data.draws import hash_seed
from argen.data.transforms import RESAMPLE, cover
from argen.errors import UserError
from argen.images.pixels import Size

CROPS = ("center", "random")


@dataclass(frozen=True)
class RandomCrop:
    """Scales an image until a random size is just covered, then cuts a random part out of it.

    For a square of S pixels the shorter side of the image becomes a whole number of pixels, drawn
    evenly from `resize[0]` * S to `resize[1]` * S, and the place of the crop is drawn evenly. Other
    proportions are covered in the same way, S being their shorter side.

    LlamaGen draws from 1.0 to 1.25 (256 to 320 px; ADM's crops of 0.8 to 1.0 of the image, arXiv
    2105.05233), VAR takes 1.125, taming-transformers, TiTok and Open-MAGVIT2 take 1.0.

    Attributes:
        resize: shortest and longest shorter side, as shares of the crop's.
        resample: `adm` (box filter by halves, then bicubic), `bicubic`, `bilinear` or `lanczos`.
    """

    resize: Sequence[float] = (1.0, 1.0)
    resample: str = "adm"

    def __post_init__(self) -> None:
        whole = len(self.resize) == 2 and all(isinstance(v, int | float) for v in self.resize)
        if not whole or not 1 <= self.resize[0] <= self.resize[1]:
            raise UserError(
                f"data.resize={list(self.resize)} must be two numbers from 1 on, the smaller "
                "first: the shorter side before the crop as shares of image_size, e.g. [1.0,1.25]."
            )

    def __call__(self, image: Image.Image, size: Size, seed: int) -> Image.Image:
        """Return (height, width) pixels of an RGB image, as `seed` decides."""
        height, width = size
        rng = random.Random(hash_seed("crop", seed))
        short = min(size)
        low, high = (round(share * short) for share in self.resize)
        share = (low + int(rng.random() * (high - low + 1))) / short
        image = cover(image, (round(height * share), round(width * share)), self.resample)
        top = int(rng.random() * (image.height - height + 1))
        left = int(rng.random() * (image.width - width + 1))
        return image.crop((left, top, left + width, top + height))

    def describe(self) -> str:
        """Return a few words for manifests."""
        low, high = self.resize
        return f"random crop of {low:g} to {high:g} times the size ({self.resample})"


def random_crop(crop: str, resize: Sequence[float], resample: str) -> RandomCrop | None:
    """Return what the settings `data.crop`, `data.resize` and `data.resample` ask for.

    Raises:
        UserError: unknown words, impossible numbers, or settings of a random crop without one.
    """
    if crop not in CROPS or resample not in RESAMPLE:
        raise UserError(
            f"data.crop={crop} data.resample={resample}: crop is {' or '.join(CROPS)}, resample "
            f"one of {', '.join(RESAMPLE)}."
        )
    if crop == "random":
        return RandomCrop(tuple(resize), resample)
    if list(resize) != [1.0, 1.0] or resample != "adm":
        raise UserError(
            "data.resize and data.resample say how training images are scaled before a random "
            "crop: add data.crop=random, or leave them out."
        )
    return None
