"""Images that are given in part: which pixels are kept, and which codes that fixes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from argen.errors import IncompatibleError, UserError
from argen.tokenizers.base import Tokenizer

SIDES = ("top", "bottom", "left", "right", "centre", "border")


def kept_pixels(size: tuple[int, int], keep: str | Sequence[float], share: float = 0.5) -> Tensor:
    """Return which pixels of an image are kept, boolean (H, W).

    Args:
        size: (H, W).
        keep: `top`, `bottom`, `left` or `right` (completion), `centre` (outpainting), `border`
            (inpainting of the middle), or a box [top, left, bottom, right] in shares of the sides.
        share: how much of the height or width is kept, in (0, 1); of both for `centre`. For
            `border` it is the share of both that the hole takes.

    Raises:
        UserError: unknown names, shares outside the image.
    """
    H, W = size
    if not isinstance(keep, str):
        box = [float(x) for x in keep]
        if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise UserError(
                f"keep={list(keep)} must be a box [top, left, bottom, right] in shares of the "
                "sides, e.g. [0, 0, 0.5, 1] for the upper half."
            )
    elif keep not in SIDES:
        raise UserError(
            f"Unknown keep={keep}; use {', '.join(SIDES)} or a box [top, left, bottom, right]."
        )
    elif not 0 < share < 1:
        raise UserError(f"share={share} must lie between 0 and 1.")
    else:
        half, rest = (1 - share) / 2, 1 - share
        box = {
            "top": [0, 0, share, 1],
            "bottom": [rest, 0, 1, 1],
            "left": [0, 0, 1, share],
            "right": [0, rest, 1, 1],
        }.get(keep, [half, half, 1 - half, 1 - half])
    kept = torch.zeros(H, W, dtype=torch.bool)
    top, bottom = round(box[0] * H), round(box[2] * H)
    left, right = round(box[1] * W), round(box[3] * W)
    kept[top:bottom, left:right] = True
    return ~kept if keep == "border" else kept


def read_mask(path: Path | str, size: tuple[int, int]) -> Tensor:
    """Read a mask file, bright where pixels shall be drawn; returns those that are kept (H, W).

    Raises:
        UserError: the file is missing or no image.
    """
    import numpy as np
    from PIL import Image

    from argen.images.files import UNREADABLE

    try:
        with Image.open(path) as image:
            grey = image.convert("L").resize((size[1], size[0]), Image.Resampling.NEAREST)
    except UNREADABLE as error:
        raise UserError(f"mask={path} is not a readable image ({error}).") from error
    return torch.from_numpy(np.array(grey)) < 128


@torch.inference_mode()
def known_codes(tokenizer: Tokenizer, image: Tensor, kept_HW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions (n,) and codes (n, ...) that the kept pixels fix.

    A code counts as given when all the pixels of its cell are kept: its square of a grid, and on
    every scale of a pyramid the square that it covers there.

    Args:
        tokenizer: codes with places in the image.
        image: (3, H, W) in [-1, 1]; what is not kept still reaches codes beside it a little.
        kept_HW: which pixels are kept.

    Raises:
        IncompatibleError: the codes have no places.
        UserError: no code, or every code, would be given.
    """
    if not tokenizer.spatial:
        raise IncompatibleError(
            f"The codes of {type(tokenizer).__name__} have no places in the image, so a part of "
            "it fixes none of them: use a model whose tokenizer has a grid or a pyramid of codes."
        )
    whole = []
    for segment in tokenizer.spec.segments:
        h, w = segment.shape
        rows = torch.arange(kept_HW.shape[0]) * h // kept_HW.shape[0]
        columns = torch.arange(kept_HW.shape[1]) * w // kept_HW.shape[1]
        cell = rows[:, None] * w + columns
        whole.append(torch.ones(h * w).scatter_reduce(
            0, cell.flatten(), kept_HW.flatten().float(), "amin"
        ))  # fmt: skip
    given_L = torch.cat(whole).bool()
    if not bool(given_L.any()):
        h, w = tokenizer.spec.segments[-1].shape
        raise UserError(
            f"What is kept covers no code wholly: the image has {h}x{w} of them. Keep more of it."
        )
    if bool(given_L.all()):
        raise UserError("Every pixel is kept, so there is nothing to draw: keep less.")
    parameter = next(tokenizer.parameters())
    codes = tokenizer.encode(image[None].to(parameter.device, parameter.dtype))[0]
    positions = given_L.nonzero()[:, 0].to(codes.device)
    return positions, codes[positions]
