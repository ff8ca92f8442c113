"""Images side by side: a grid with one labelled row a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from argen.images.pixels import to_uint8

if TYPE_CHECKING:
    from PIL import Image

GAP, LABEL_HEIGHT = 4, 18


def to_pil(images: Tensor) -> list[Image.Image]:
    """Return Pillow images of float images (B, 3, H, W) in [-1, 1], rounded to 8 bits."""
    from PIL import Image

    return [
        Image.fromarray(pixels) for pixels in to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    ]


def draw_grid(
    rows: Sequence[tuple[str, Tensor]], *, least_side: int = 64, columns: int | None = None
) -> Image.Image:
    """Return one image with rows of images, each row under its label.

    Args:
        rows: label and images (n, 3, H, W) in [-1, 1] of each row.
        least_side: small images are enlarged by a whole factor, pixels kept sharp, to about
            this side.
        columns: images a line; longer rows wrap. All on one line when None.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=13)
    drawn: list[tuple[str, list[Image.Image]]] = []
    for label, images in rows:
        tiles = to_pil(images)
        if tiles:
            factor = max(1, round(least_side / min(tiles[0].size)))
            size = (tiles[0].width * factor, tiles[0].height * factor)
            tiles = [p.resize(size, Image.Resampling.NEAREST) for p in tiles]
        step = columns or max(1, len(tiles))
        lines = [tiles[i : i + step] for i in range(0, len(tiles), step)]
        drawn += [(label if i == 0 else "", line) for i, line in enumerate(lines)]
    width = max(
        [GAP + sum(p.width + GAP for p in line) for _, line in drawn]
        + [int(font.getlength(label)) + 2 * GAP for label, _ in drawn]
    )
    heights = [(LABEL_HEIGHT if label else 0) + line[0].height + GAP for label, line in drawn]
    canvas = Image.new("RGB", (width, GAP + sum(heights)), "white")
    pen, y = ImageDraw.Draw(canvas), GAP
    for (label, line), height in zip(drawn, heights):
        top = y
        if label:
            pen.text((GAP, top), label, fill=(60, 60, 60), font=font)
            top += LABEL_HEIGHT
        x = GAP
        for image in line:
            canvas.paste(image, (x, top))
            x += image.width + GAP
        y += height
    return canvas
