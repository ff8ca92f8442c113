"""Sampled images, with all it takes to sample them again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from argen.images.grid import draw_grid, to_pil

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Samples:
    """Sampled images.

    Attributes:
        images: (N, 3, H, W) in [-1, 1].
        codes: what they were decoded from.
        labels: class of each, or the place of its text among the different ones, long (N,).
        names: class name or text of each.
        seeds: seed of each, which gives the same image again.
        passes: network passes an image.
        exact: whether the strategy follows the generator's own distribution.
    """

    images: Tensor
    codes: Tensor
    labels: Tensor
    names: list[str]
    seeds: list[int]
    passes: int
    exact: bool

    def __len__(self) -> int:
        return len(self.seeds)

    @classmethod
    def cat(cls, parts: Sequence[Samples]) -> Samples:
        """Return all samples of parts that were sampled in the same way."""
        return cls(
            images=torch.cat([part.images for part in parts]),
            codes=torch.cat([part.codes for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            names=[name for part in parts for name in part.names],
            seeds=[seed for part in parts for seed in part.seeds],
            passes=parts[0].passes,
            exact=parts[0].exact,
        )

    def pil(self) -> list[Image.Image]:
        """Return PIL images."""
        return to_pil(self.images)

    def grid(self, above: Sequence[tuple[str, Tensor]] = ()) -> Image.Image:
        """Return one image with a labelled row a class, below rows of others.

        Its `info["argen"]`, which is saved with it, names class and key of each image, row by row.
        """
        rows: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):
            rows.setdefault(name, []).append(i)
        grid = draw_grid([*above, *((name, self.images[index]) for name, index in rows.items())])
        grid.info["argen"] = json.dumps(
            [
                {"name": name, "seeds": [self.seeds[i] for i in index]}
                for name, index in rows.items()
            ]
        )
        return grid
