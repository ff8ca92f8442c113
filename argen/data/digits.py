"""Handwritten digits, 8x8: 1,797 images that come with scikit-learn, for tests and first steps.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, CC-BY 4.0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from argen.build import buildable
from argen.data.draws import hash_seed
from argen.data.images import ImageSource, MemoryImages
from argen.data.transforms import Augment, resize
from argen.errors import UserError
from argen.images.files import to_tensor
from argen.images.pixels import as_size

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@buildable("data")
def digits(
    image_size: int | Sequence[int] = 8, holdout: float = 0.1, seed: int = 0, shift: int = 0
) -> ImageSource:
    """Return scikit-learn's digits as three-channel images, white on black.

    Args:
        image_size: side in pixels, or [height, width]; the originals are 8x8.
        holdout: share of each class that is held out, in (0, 1).
        seed: names the split.
        shift: training images move by up to this many pixels.

    Raises:
        UserError: scikit-learn is not installed, impossible size or share.
    """
    size = as_size(image_size)
    if not 0 < holdout < 1:
        raise UserError(f"holdout={holdout} must lie between 0 and 1, e.g. 0.1 for a tenth.")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "data=digits needs scikit-learn: install it with `pip install scikit-learn`, or use "
            "data=emoji."
        ) from error
    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # levels 0..16
    images = torch.stack([to_tensor(resize(Image.fromarray(g).convert("RGB"), size)) for g in grey])
    labels = torch.from_numpy(bunch.target).long()

    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(len(NAMES)):
        rows = (labels == label).nonzero()[:, 0].tolist()
        ranked = sorted(rows, key=lambda row: hash_seed("digits split", seed, row))
        held[ranked[: max(1, round(holdout * len(rows)))]] = True

    def side(chosen: torch.Tensor, augment: Augment | None) -> MemoryImages:
        names = [f"digit-{row:04d}" for row in chosen.nonzero()[:, 0].tolist()]
        return MemoryImages(images[chosen], labels[chosen], names, augment)

    return ImageSource(
        name="digits",
        classes=NAMES,
        image_size=size,
        train=side(~held, Augment(shift=shift)),
        val=side(held, None),
        licence="CC-BY 4.0",
        notes="Optical Recognition of Handwritten Digits (UCI), as shipped by scikit-learn",
        transform=f"grey as RGB, Lanczos to {size[0]}x{size[1]}",
    )
