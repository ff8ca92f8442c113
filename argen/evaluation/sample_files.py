"""Images somebody made: a folder, an `.npz` of ADM's form, or tar shards, read in one pass.

Shapes: B batch, N images, H W pixels.
"""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from argen.data.class_names import find_class
from argen.errors import UserError
from argen.images.files import SUFFIXES, check_one_size, image_files, read_image
from argen.runtime.distributed import rank_and_world_size


class SampleFiles(ABC):
    """Images of one size, 8-bit RGB.

    Attributes:
        name: where they are.
        count: how many N.
        size: (H, W).
        labels: long (N,) where the file holds them, else None.
        names: class of each by name, N of them, where the file holds them, else None.
    """

    name: str
    count: int
    size: tuple[int, int]
    labels: Tensor | None = None
    names: list[str] | None = None

    @abstractmethod
    def images(self, wanted: range, step: int) -> Iterator[Tensor]:
        """Yield images uint8 (3, H, W) of every `step`-th run of `len(wanted)`, from `wanted`."""

    def batches(
        self, batch_size: int = 64, *, share: bool = True
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield numbers (B,) and pixels uint8 (B, 3, H, W) in order: this rank's share, or all."""
        rank, ranks = rank_and_world_size() if share else (0, 1)
        first = range(rank * batch_size, (rank + 1) * batch_size)
        index, held = [], []
        numbers = (
            i
            for start in range(first.start, self.count, ranks * batch_size)
            for i in range(start, min(start + batch_size, self.count))
        )
        for number, image in zip(numbers, self.images(first, ranks)):
            index.append(number)
            held.append(image)
            if len(held) == batch_size:
                yield torch.tensor(index), torch.stack(held)
                index, held = [], []
        if held:
            yield torch.tensor(index), torch.stack(held)


class FolderSamples(SampleFiles):
    """A folder, searched recursively, in order of path."""

    def __init__(self, folder: Path) -> None:
        self.files = image_files(folder)
        self.name, self.count = str(folder), len(self.files)
        self.size = check_one_size(self.files)

    def images(self, wanted: range, step: int) -> Iterator[Tensor]:
        """Read the files of this share."""
        for number in _share(wanted, step, self.count):
            yield read_image(self.files[number])


class NpzSamples(SampleFiles):
    """`arr_0` uint8 (N, H, W, 3), as ADM's script takes it; `arr_1` or `labels` (N,) if there.

    Read as a stream: the file may be larger than memory.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if "arr_0.npy" not in names:
                    raise UserError(
                        f"{path} holds {', '.join(names) or 'nothing'}, but images must be "
                        "arr_0: write them with numpy.savez(file, images)."
                    )
                with archive.open("arr_0.npy") as file:
                    shape, fortran, dtype = _header(file)
                for name in ("labels.npy", "arr_1.npy"):
                    if name in names and self.labels is None:
                        with archive.open(name) as file:
                            found = np.lib.format.read_array(file, allow_pickle=False)
                        self.labels = torch.from_numpy(found.astype(np.int64).reshape(-1))
                if "names.npy" in names:  # of argen sample format=npz
                    with archive.open("names.npy") as file:
                        found = np.lib.format.read_array(file, allow_pickle=False)
                    self.names = [str(name) for name in found.reshape(-1)]
        except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is not a readable .npz file ({error}).") from error
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran:
            raise UserError(
                f"{path}: arr_0 is {dtype} {shape}{' in Fortran order' if fortran else ''}, but "
                "images must be uint8 (N, H, W, 3) in C order."
            )
        self.count, self.size = shape[0], (shape[1], shape[2])
        if self.labels is not None and len(self.labels) != self.count:
            raise UserError(f"{path} has {self.count} images, but {len(self.labels)} labels.")
        if self.names is not None and len(self.names) != self.count:
            raise UserError(f"{path} has {self.count} images, but {len(self.names)} names.")

    def images(self, wanted: range, step: int) -> Iterator[Tensor]:
        """Stream the array, passing over what other ranks read."""
        height, width = self.size
        with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
            _header(file)
            chosen = set(_share(wanted, step, self.count)) if step > 1 else None
            for number in range(self.count):
                data = file.read(height * width * 3)
                if len(data) < height * width * 3:
                    raise UserError(f"{self.path} ends in image {number} of {self.count}.")
                if chosen is None or number in chosen:
                    pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
                    yield torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


class TarSamples(SampleFiles):
    """Tar shards with image members, in order of shard and member."""

    def __init__(self, pattern: str) -> None:
        self.name = pattern
        self.members: list[tuple[Path, tarfile.TarInfo]] = []
        for path in _expanded(pattern):
            try:
                with tarfile.open(path, "r:") as archive:
                    self.members += [
                        (path, member)
                        for member in archive
                        if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES
                    ]
            except (tarfile.TarError, OSError) as error:
                raise UserError(f"{path} is not a readable tar file ({error}).") from error
        if not self.members:
            raise UserError(f"{pattern} holds no images ({', '.join(SUFFIXES)}).")
        self.count = len(self.members)
        first = next(self.images(range(1), self.count))
        self.size = (first.shape[1], first.shape[2])

    def images(self, wanted: range, step: int) -> Iterator[Tensor]:
        """Read the members of this share."""
        opened, archive = Path(), None
        for number in _share(wanted, step, self.count):
            path, member = self.members[number]
            if archive is None or path != opened:
                opened, archive = path, path.open("rb")
            archive.seek(member.offset_data)
            image = read_image(io.BytesIO(archive.read(member.size)), f"{path}:{member.name}")
            if number and tuple(image.shape[1:]) != self.size:
                raise UserError(
                    f"{path}:{member.name} is {image.shape[2]}x{image.shape[1]} but the first "
                    f"is {self.size[1]}x{self.size[0]}: all samples must have one size."
                )
            yield image


def open_samples(where: Path | str, *, least: int = 2) -> SampleFiles:
    """Open a folder, an .npz file or tar shards (brace expansion allowed).

    Raises:
        UserError: nothing there, mixed sizes, other than 8-bit RGB, too few images.
    """
    text, path = str(where), Path(where)
    samples: SampleFiles
    if text.endswith(".tar"):
        samples = TarSamples(text)
    elif text.endswith(".npz"):
        if not path.is_file():
            raise UserError(f"There is no file {path}.")
        samples = NpzSamples(path)
    else:
        samples = FolderSamples(path)
    if samples.count < least:
        raise UserError(f"{where} holds {samples.count} images, but at least {least} are needed.")
    return samples


def labels_in(samples: SampleFiles, classes: Sequence[str]) -> Tensor | None:
    """Return the labels (N,) of samples in the numbering of a data set's classes.

    By name where the samples have names, else as the file numbers them. None where either has
    none, or a name is none of the classes, as a prompt is not.
    """
    if samples.names is None:
        return samples.labels
    places = {name: find_class(name, classes) for name in dict.fromkeys(samples.names)}
    labels = [places[name] for name in samples.names]
    known = [label for label in labels if label is not None]
    return torch.tensor(known) if len(known) == len(labels) else None


def array_names(path: Path) -> list[str]:
    """Return the names of an .npz file's arrays; raise `UserError` if it is none."""
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is not a readable .npz file ({error}).") from error


def _share(wanted: range, step: int, count: int) -> Iterator[int]:
    """Yield the numbers of every `step`-th run of `len(wanted)`."""
    for start in range(wanted.start, count, step * len(wanted)):
        yield from range(start, min(start + len(wanted), count))


def _expanded(pattern: str) -> list[Path]:
    from braceexpand import braceexpand

    paths = (
        [Path(p) for p in braceexpand(pattern)] if re.search(r"\{", pattern) else [Path(pattern)]
    )
    for path in paths:
        if not path.is_file():
            raise UserError(f"There is no file {path}.")
    return paths


def _header(file: IO[bytes]) -> Any:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"array format {version}")
    return read[version](file)
