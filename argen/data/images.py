"""Labelled images: in memory or read from files, and the pair of training and held-out sets."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from argen.data.draws import SampleRequest, as_request
from argen.data.transforms import Augment
from argen.errors import UserError
from argen.images.files import UNREADABLE, Transform, decode_image
from argen.images.pixels import Size, to_float

if TYPE_CHECKING:
    from argen.data.tar_stream import TarStream

log = logging.getLogger(__name__)


class ImageDataset(Dataset[dict[str, Tensor]], ABC):
    """Labelled images of one size, with or without augmentation.

    Items are `{"image": float32 (3, H, W) in [-1, 1], "label": int64, "index": int64}`; `index` is
    the image that was shown. Ask with a `SampleRequest`, or with a plain index for the bare image.

    Attributes:
        labels: class of each image, int64 (N,).
        names: file or image names, N of them.
        captions: what each image shows, in words, N of them; None where nobody said.
        size: (H, W).
        augment: what a `SampleRequest` with a seed does to the pixels; None for nothing.
    """

    def __init__(
        self, labels: Tensor, names: Sequence[str], size: Size, augment: Augment | None = None
    ) -> None:
        if len(labels) != len(names):
            raise ValueError(f"{len(labels)} labels, but {len(names)} names")
        self.labels = labels.long()
        self.names = list(names)
        self.captions: list[str] | None = None
        self.size = size
        self.augment = augment

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, item: SampleRequest | int) -> dict[str, Tensor]:
        request = as_request(item)
        if not 0 <= request.index < len(self):
            raise IndexError(f"image {request.index} of {len(self)}")
        if request.seed is None or self.augment is None:
            index, pixels = self.load(request.index)
        else:
            crop = self.augment.crop and partial(self.augment.crop, seed=request.seed)
            index, pixels = self.load_by(request.index, crop) if crop else self.load(request.index)
            pixels = self.augment(pixels, request.seed)
        return {
            "image": to_float(pixels),
            "label": self.labels[index],
            "index": torch.tensor(index),
        }

    def pixels(self, index: int) -> Tensor:
        """Return the bare image, uint8 (3, H, W)."""
        return self.load(index)[1]

    @abstractmethod
    def load(self, index: int) -> tuple[int, Tensor]:
        """Return the index and uint8 pixels of image `index`, or of its stand-in."""

    def load_by(self, index: int, transform: Transform) -> tuple[int, Tensor]:
        """Return the same as `load` by another way from an image to pixels.

        Raises:
            UserError: this set has no whole images.
        """
        raise UserError(
            f"{type(self).__name__} holds images of one size, which leaves no room for a random "
            "crop: use data.crop=center."
        )

    @abstractmethod
    def digest(self) -> str:
        """Return a sha256 over names, labels and contents."""


class MemoryImages(ImageDataset):
    """Images held in memory as uint8 (N, 3, H, W)."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        names: Sequence[str],
        augment: Augment | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 (N, 3, H, W), got {images.dtype} {images.shape}")
        super().__init__(labels, names, (images.shape[2], images.shape[3]), augment)
        self.images = images

    def load(self, index: int) -> tuple[int, Tensor]:
        """Return the index and its pixels."""
        return index, self.images[index]

    def digest(self) -> str:
        """Return a sha256 over names, labels and pixels."""
        digest = _digest_of_names(self)
        digest.update(self.images.contiguous().numpy())
        return digest.hexdigest()


class FileImages(ImageDataset):
    """Images decoded from files when they are asked for.

    A file that cannot be read is named once in a warning and replaced by the next readable image
    of its class. Which files failed is shared between the loader's worker processes.

    Args:
        paths: the files.
        labels: class of each file, int64 (N,).
        names: what to call them.
        size: (H, W) of the images after `transform`.
        transform: brings an RGB image to (H, W).
        sizes: bytes of each file, for the fingerprint.
        augment: see `ImageDataset`.
        max_bad_fraction: more unreadable files than this share of all stop the run.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Tensor,
        names: Sequence[str],
        size: Size,
        transform: Transform,
        sizes: Sequence[int],
        augment: Augment | None = None,
        max_bad_fraction: float = 0.01,
    ) -> None:
        super().__init__(labels, names, size, augment)
        self.paths = list(paths)
        self.transform = transform
        self.sizes = list(sizes)
        self.max_bad_fraction = max_bad_fraction
        self._bad = torch.zeros(len(self.paths), dtype=torch.uint8).share_memory_()

    @property
    def bad_count(self) -> int:
        """How many files turned out unreadable so far, in all worker processes."""
        return int(self._bad.sum())

    def read(self, index: int, transform: Transform) -> Tensor:
        """Return the uint8 pixels of one image; raises one of `UNREADABLE` when damaged."""
        return decode_image(self.paths[index], self.size, transform)

    def load(self, index: int) -> tuple[int, Tensor]:
        """Return the image's index and pixels, or the next readable image's of its class."""
        return self.load_by(index, self.transform)

    def load_by(self, index: int, transform: Transform) -> tuple[int, Tensor]:
        """Return the same by another way from an image to pixels."""
        same_class: Tensor | None = None
        candidate, step = index, 0
        while True:
            if not self._bad[candidate]:
                try:
                    return candidate, self.read(candidate, transform)
                except UNREADABLE as error:
                    self._note_bad(candidate, error)
            if same_class is None:
                same_class = (self.labels == self.labels[index]).nonzero()[:, 0]
                start = int(torch.searchsorted(same_class, index))
            step += 1
            if step == len(same_class):
                raise UserError(
                    f"No image of the class of {self.names[index]} can be read: replace its files."
                )
            candidate = int(same_class[(start + step) % len(same_class)])

    def _note_bad(self, index: int, error: BaseException) -> None:
        self._bad[index] = 1
        log.warning("Skipped an unreadable image: %s (%s)", self.paths[index], error)
        bad = self._bad.nonzero()[:, 0].tolist()
        check_bad_rate([self.paths[i] for i in bad], len(self), self.max_bad_fraction)

    def digest(self) -> str:
        """Return a sha256 over names, labels and file sizes."""
        digest = _digest_of_names(self)
        digest.update(",".join(map(str, self.sizes)).encode())
        return digest.hexdigest()


def check_bad_rate(bad: Sequence[str], total: int, max_bad_fraction: float) -> None:
    """Raise `UserError` when more than the allowed share of files cannot be read.

    One bad file is never too many in a small data set, unless the share is 0.
    """
    if len(bad) > max(max_bad_fraction * total, 1 if max_bad_fraction else 0):
        shown = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise UserError(
            f"{len(bad)} of {total} images cannot be read, more than max_bad_fraction="
            f"{max_bad_fraction:g} allows: {shown}. Replace or remove them, or raise the limit."
        )


def _digest_of_names(dataset: ImageDataset) -> Any:
    digest = hashlib.sha256(f"{dataset.size}\n".encode())
    for name, label in zip(dataset.names, dataset.labels.tolist()):
        digest.update(f"{label}\t{name}\n".encode())
    return digest


@dataclass
class ImageSource:
    """A named data set with its classes and its two sides.

    Attributes:
        name: short name, for logs and manifests.
        classes: class names, in the order of the labels.
        image_size: (H, W).
        train: images to learn from.
        val: held-out images.
        stream: the training images as an endless stream, for sets too large to be drawn from.
        licence: under which terms the images come, as far as known.
        notes: where they come from and how they were chosen.
        transform: how a file becomes pixels, in words.
    """

    name: str
    classes: tuple[str, ...]
    image_size: Size
    train: ImageDataset
    val: ImageDataset
    stream: TarStream | None = None
    licence: str = "unknown"
    notes: str = ""
    transform: str = ""
    _manifest: dict[str, Any] | None = field(default=None, repr=False, compare=False)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images of each class on each side."""
        sides = {"train": self.train, "val": self.val}
        tallies = {
            side: torch.bincount(data.labels, minlength=len(self.classes)).tolist()
            for side, data in sides.items()
        }
        return {side: dict(zip(self.classes, tally)) for side, tally in tallies.items()}

    def manifest(self) -> dict[str, Any]:
        """Return what identifies these images, as plain values for JSON.

        `fingerprint` is a sha256 over names, labels and pixels (file sizes where the images are
        read from files) of both sides.
        """
        if self._manifest is None:
            augment = self.train.augment
            both = f"{self.train.digest()} {self.val.digest()}"
            self._manifest = {
                "name": self.name,
                "classes": list(self.classes),
                "image_size": list(self.image_size),
                "counts": self.counts(),
                "transform": self.transform,
                "augment": augment.describe() if augment else "none",
                "licence": self.licence,
                "notes": self.notes,
                "fingerprint": hashlib.sha256(both.encode()).hexdigest(),
            }
        return dict(self._manifest)
