"""Pictures in and out of files: 8-bit rounding, and folders of samples made by anyone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from argen.errors import UserError

ROUNDINGS = ("nearest", "truncate")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


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
            "Pictures hold values that are not finite (NaN or infinity); "
            "the model or its sampling settings are at fault, so nothing was scored."
        )
    levels = images.float().add(1).mul(127.5)
    levels = levels.round() if rounding == "nearest" else levels.floor()
    return levels.clamp(0, 255).to(torch.uint8)


def to_float(pixels: Tensor) -> Tensor:
    """Map uint8 levels to floats in [-1, 1]; `to_uint8` gives the same levels back."""
    return pixels.float().div(127.5).sub(1)


def picture_files(folder: Path | str) -> list[Path]:
    """Return the picture files under `folder`, sorted by path.

    Raises:
        UserError: no such folder, or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give the folder that holds the samples.")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UserError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}).")
    return files


def read_picture(file: Path | IO[bytes], name: str | None = None) -> Tensor:
    """Return an 8-bit RGB file as uint8 (3, H, W).

    Args:
        file: its path, or the file opened.
        name: what messages call it.

    Raises:
        UserError: the file is damaged, or is not plain 8-bit RGB (grey, transparent, 16-bit),
            which would have to be converted in a way that changes the score.
    """
    path = name or file
    try:
        with Image.open(file) as picture:
            picture.load()
            mode = picture.mode
            if mode == "RGB":
                return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable picture: delete it or write it again."
        ) from error
    raise UserError(
        f"{path} has mode {mode}, not 8-bit RGB: convert the samples to RGB first, "
        "the conversion changes the score and must be yours."
    )


def read_images(folder: Path | str, *, batch_size: int = 256, least: int = 2) -> Iterator[Tensor]:
    """Read a folder of samples in batches, in order of file name.

    Args:
        folder: searched recursively for 8-bit RGB pictures, all of one size.
        batch_size: pictures a batch.
        least: how many pictures there must be.

    Returns:
        an iterator over uint8 (B, 3, H, W); the folder itself is checked at once.

    Raises:
        UserError: too few pictures, mixed sizes, a damaged or non-RGB file (named).
    """
    files = picture_files(folder)
    if len(files) < least:
        raise UserError(f"{folder} holds {len(files)} pictures, but at least {least} are needed.")
    check_one_size(files)
    return _batches(files, batch_size)


def check_one_size(files: Sequence[Path]) -> tuple[int, int]:
    """Return the (H, W) that all files have; only their headers are read.

    Raises:
        UserError: mixed sizes, or a damaged file (named).
    """
    size = _size(files[0])
    for path in files:
        found = _size(path)
        if found != size:
            raise UserError(
                f"{path} is {found[0]}x{found[1]} but {files[0].name} is {size[0]}x{size[1]}: "
                "all samples must have one size."
            )
    return size[1], size[0]


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as picture:
            return picture.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable picture: delete it or write it again."
        ) from error


def _batches(files: list[Path], batch_size: int) -> Iterator[Tensor]:
    for i in range(0, len(files), batch_size):
        yield torch.stack([read_picture(path) for path in files[i : i + batch_size]])
