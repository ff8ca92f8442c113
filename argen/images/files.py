"""Images in and out of files: 8-bit rounding, and folders of samples made by anyone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from argen.errors import UserError
from argen.images.pixels import Size
from argen.runtime.files import replacing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def image_files(folder: Path | str) -> list[Path]:
    """Return the image files under `folder`, sorted by path.

    Raises:
        UserError: no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give the folder that holds the samples.")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UserError(f"{folder} holds no images ({', '.join(SUFFIXES)}).")
    return files


def read_image(file: Path | IO[bytes], name: str | None = None) -> Tensor:
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
        with Image.open(file) as image:
            image.load()
            mode = image.mode
            if mode == "RGB":
                return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not a readable image: delete it or write it again.") from error
    raise UserError(
        f"{path} has mode {mode}, not 8-bit RGB: convert the samples to RGB first, "
        "the conversion changes the score and must be yours."
    )


def read_images(folder: Path | str, *, batch_size: int = 256, least: int = 2) -> Iterator[Tensor]:
    """Read a folder of samples in batches, in order of file name.

    Args:
        folder: searched recursively for 8-bit RGB images, all of one size.
        batch_size: images a batch.
        least: how many images there must be.

    Returns:
        an iterator over uint8 (B, 3, H, W); the folder itself is checked at once.

    Raises:
        UserError: too few images, mixed sizes, a damaged or non-RGB file (named).
    """
    files = image_files(folder)
    if len(files) < least:
        raise UserError(f"{folder} holds {len(files)} images, but at least {least} are needed.")
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
        with Image.open(path) as image:
            return image.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not a readable image: delete it or write it again.") from error


def _batches(files: list[Path], batch_size: int) -> Iterator[Tensor]:
    for i in range(0, len(files), batch_size):
        yield torch.stack([read_image(path) for path in files[i : i + batch_size]])


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an upright 8-bit RGB image from any mode; transparency becomes white."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey to its lowest 256 levels.
        levels = np.asarray(image).astype(np.int64)
        scaled = levels // 257 if levels.size and levels.max() > 255 else levels
        return Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, layer).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """Return the uint8 pixels (3, H, W) of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


Transform = Callable[[Image.Image, Size], Image.Image]

# What Pillow raises on damaged files: SyntaxError for broken PNG chunks is not a typo.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def decode_image(path: str | Path | IO[bytes], size: Size, transform: Transform) -> Tensor:
    """Decode a file to uint8 pixels (3, H, W); raises one of `UNREADABLE` when it is damaged."""
    with Image.open(path) as image:
        return to_tensor(transform(to_rgb(image), size))


def save_image(image: Image.Image, path: Path | str) -> None:
    """Write a PNG, whole or not at all; words in `image.info` become text of the file."""
    words = PngInfo()
    for key, value in image.info.items():
        if isinstance(value, str):
            words.add_text(str(key), value)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=words)
