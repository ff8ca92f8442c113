"""Images as they are decoded: what is known after each pass, shown as an animation.

Shapes: B samples, L codes, n positions of a pass, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from argen.runtime.files import replacing
from argen.spec import CodeSpec
from argen.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from PIL import Image

FRAME_MS, LAST_MS = 90, 1500


class Preview:
    """An observer that notes the codes of one batch and decodes them afterwards.

    Noting costs no more than the copy of a pass's codes: nothing is decoded, and nothing waits for
    the device, while codes are being drawn.

    Args:
        tokenizer: decodes.
        known: positions (n,) or (B, n) and their codes that are given beforehand.
    """

    def __init__(self, tokenizer: Tokenizer, *, known: tuple[Tensor, Tensor] | None = None) -> None:
        self.tokenizer = tokenizer
        self.given = known
        self.passes: list[tuple[Tensor, Tensor]] = []

    def __call__(self, positions: Tensor, codes: Tensor, outputs: Tensor) -> None:
        """Note a pass: positions (n,) or (B, n), -1 for none, and codes (B, n) or (B, n, C)."""
        self.passes.append((positions.clone(), codes.clone()))

    @torch.inference_mode()
    def frames(self, max_frames: int = 24) -> list[Tensor]:
        """Return images (B, 3, H, W) in [-1, 1], at most `max_frames`, spread evenly over passes.

        A tokenizer that decodes leading codes alone (`preview_lengths`, or TiTok's `any_length`)
        shows those; for others an unknown code takes the value of the nearest known one.
        """
        if not self.passes:
            return []
        shown = {round((i + 1) * len(self.passes) / max_frames) - 1 for i in range(max_frames)}
        first = self.passes[0][1]
        shape = (len(first), self.tokenizer.spec.length, *first.shape[2:])
        codes = torch.zeros(shape, dtype=first.dtype, device=first.device)
        known_BL = torch.zeros(shape[:2], dtype=torch.bool, device=first.device)
        if self.given is not None:
            _place(codes, known_BL, self.given[0].to(codes.device), self.given[1].to(codes))
        images = []
        for i, (positions, new) in enumerate(self.passes):
            _place(codes, known_BL, positions, new)
            if i in shown or len(self.passes) <= max_frames:
                image = self._image(codes, known_BL)
                images += [] if image is None else [image]
        return images

    def _image(self, codes: Tensor, known_BL: Tensor) -> Tensor | None:
        """Decode what is known; None where that shows nothing yet."""
        if bool(known_BL.all()):
            images = self.tokenizer.decode(codes)
        elif lengths := self.tokenizer.preview_lengths:
            run = int(known_BL.all(0).cumprod(0).sum())  # leading codes known in every sample
            fits = [n for n in lengths if n <= run]
            if not fits:
                return None
            images = self.tokenizer.decode(codes, length=max(fits))
        else:
            images = self.tokenizer.decode(fill(codes, known_BL, self.tokenizer.spec))
        return images.float().clamp(-1, 1).cpu()


def fill(codes: Tensor, known_BL: Tensor, spec: CodeSpec) -> Tensor:
    """Give unknown codes the value of the nearest known one in the image.

    Args:
        codes: (B, L) or (B, L, C).
        known_BL: which are known; a sample without any keeps its codes.
        spec: says where each position lies.
    """
    places = [
        torch.stack(
            torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij"),
            dim=-1,
        ).view(h * w, 2)
        for h, w in (segment.shape for segment in spec.segments)
    ]
    place_L2 = torch.cat(places).to(codes.device)
    distance_LL = torch.cdist(place_L2, place_L2)
    # Of equally near ones the latest wins: it belongs to the finer grid.
    distance_LL = distance_LL - 1e-6 * torch.arange(spec.length, device=codes.device)
    nearest = torch.stack(
        [distance_LL.masked_fill(~known_L, float("inf")).argmin(1) for known_L in known_BL]
    )  # B L
    nearest = torch.where(known_BL, torch.arange(spec.length, device=codes.device), nearest)
    index = nearest.view(*nearest.shape, *([1] * (codes.ndim - 2))).expand_as(codes)
    return codes.gather(1, index)


def save_animation(images: Sequence[Image.Image], path: Path) -> None:
    """Write frames of one size as an endless GIF or WebP, as `path` ends; the last one lingers."""
    times = [FRAME_MS] * (len(images) - 1) + [LAST_MS]
    kind = path.suffix[1:].upper()
    with replacing(path) as temporary:
        images[0].save(
            temporary,
            format=kind,
            save_all=True,
            append_images=list(images[1:]),
            duration=times,
            loop=0,
        )


def _place(codes: Tensor, known_BL: Tensor, positions: Tensor, new: Tensor) -> None:
    """Write the codes of one pass; a position of -1 is none."""
    if positions.ndim == 1:
        codes[:, positions], known_BL[:, positions] = new, True
        return
    row, slot = (positions >= 0).nonzero(as_tuple=True)
    place = positions[row, slot]
    codes[row, place], known_BL[row, place] = new[row, slot], True
