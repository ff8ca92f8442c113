"""The images of tar shards by number, for validation, tokenising and scores."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from argen.data.images import FileImages, check_bad_rate
from argen.data.tar_members import read_members
from argen.data.transforms import Augment, center_crop
from argen.images.files import Transform, decode_image
from argen.images.pixels import Size

log = logging.getLogger(__name__)
INDEXED = ("paths", "labels", "names", "captions", "sizes", "starts", "files", "shard_of", "_bad")


class TarImages(FileImages):
    """Images inside tar files, found by an index of their places that is made when first needed.

    Args:
        shards: paths or addresses of the tar files.
        classes: class names, in the order of the labels.
        size: (H, W) of the images.
        fetch: returns the local path of a shard.
        unconditional: every image is of the one class.
        augment: see `ImageDataset`.
        max_bad_fraction: more unreadable images than this share of all stop the run.
    """

    starts: list[int]
    files: list[Path]
    shard_of: list[int]

    def __init__(
        self,
        shards: Sequence[str],
        classes: Sequence[str],
        size: Size,
        *,
        fetch: Callable[[str], Path],
        unconditional: bool = False,
        augment: Augment | None = None,
        max_bad_fraction: float = 0.01,
    ) -> None:
        self.shards, self.classes, self.size = list(shards), tuple(classes), size
        self.fetch, self.unconditional = fetch, unconditional
        self.augment, self.max_bad_fraction = augment, max_bad_fraction
        self.transform = center_crop

    def __getattr__(self, name: str) -> Any:
        # Only called for what is not there: the index costs a pass over the shards.
        if name not in INDEXED:
            raise AttributeError(name)
        self._index()
        return getattr(self, name)

    def _index(self) -> None:
        found, problems = [], []
        self.files = []
        for number, shard in enumerate(self.shards):
            self.files.append(self.fetch(shard))
            members, bad = read_members(
                self.files[-1], self.classes, unconditional=self.unconditional
            )
            found += [(number, member) for member in members]
            problems += bad
        for problem in problems:
            log.warning("Left out an image: %s", problem)
        check_bad_rate(problems, len(found) + len(problems), self.max_bad_fraction)
        self.shard_of = [number for number, _ in found]
        self.starts = [member.start for _, member in found]
        super().__init__(
            [f"{self.shards[number]}#{member.key}" for number, member in found],
            torch.tensor([member.label for _, member in found], dtype=torch.long),
            [member.key for _, member in found],
            self.size,
            self.transform,
            [member.size for _, member in found],
            self.augment,
            self.max_bad_fraction,
        )
        captions = [member.caption for _, member in found]
        if all(captions):
            self.captions = [str(caption) for caption in captions]

    def read(self, index: int, transform: Transform) -> Tensor:
        """Return the uint8 pixels (3, H, W) of one image."""
        with self.files[self.shard_of[index]].open("rb") as file:
            file.seek(self.starts[index])
            data = file.read(self.sizes[index])
        return decode_image(io.BytesIO(data), self.size, transform)
