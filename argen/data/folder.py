"""A user's own images: one sub-directory a class.

    images/cat/001.jpg   images/cat/more/002.png   images/dog/003.webp

or, with a split of the user's own, `images/train/cat/...` and `images/val/cat/...`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import torch

from argen.build import buildable
from argen.data.captions import captions_of
from argen.data.draws import hash_seed
from argen.data.folder_scan import ARRANGE, ImageFile, directories, scan
from argen.data.images import FileImages, ImageDataset, ImageSource, MemoryImages, check_bad_rate
from argen.data.random_crop import random_crop
from argen.data.transforms import Augment, center_crop
from argen.errors import UserError
from argen.images.files import UNREADABLE, decode_image
from argen.images.pixels import Size, as_size

log = logging.getLogger(__name__)

# "auto" decodes everything at the start below both of these: seconds, not minutes.
CACHE_PIXEL_BYTES = 256 * 2**20
CACHE_FILE_BYTES = 128 * 2**20


@buildable("data")
def folder(
    path: str | os.PathLike[str] | None = None,
    image_size: int | Sequence[int] = 256,
    holdout: float = 0.05,
    seed: int = 0,
    shift: int = 0,
    flip: bool = True,
    crop: str = "center",
    resize: Sequence[float] = (1.0, 1.0),
    resample: str = "adm",
    max_bad_fraction: float = 0.01,
    cache: bool | Literal["auto"] = "auto",
    unconditional: bool = False,
    captions: str | None = None,
) -> ImageSource:
    """Return the images below a directory as a labelled data set.

    Classes are the sub-directories that hold images, at any depth, sorted by name. With
    sub-directories `train` and `val` (each with class folders) those are the two sides; otherwise
    `holdout` of each class is held out. Images are scaled and centre-cropped. Unreadable files
    are named in a warning and skipped.

    Args:
        path: the directory.
        image_size: side in pixels, or [height, width].
        holdout: share of each class that is held out, in (0, 1); at least one image of a class.
        seed: names the split.
        shift: training images move by up to this many pixels.
        flip: training images are mirrored half of the time.
        crop: training images are cut from the `center`, or at a `random` place.
        resize: of random crops: shorter side before it, as shares of `image_size`, from and to.
        resample: of random crops: `adm`, `bicubic`, `bilinear` or `lanczos`.
        max_bad_fraction: more unreadable files than this share of all (and than one) is an error.
        cache: decode all images at the start and keep them in memory; `auto` does so for small
            sets. Otherwise each is decoded when it is asked for.
        unconditional: make one class, `all`, of every image below `path`.
        captions: a file of captions, by its place below `path`, or `beside` for a `.txt` beside
            each image; see `argen.data.captions`.

    Raises:
        UserError: folder missing, empty or without images, one class only, too many unreadable
            files, impossible numbers, images without captions where these are asked for.
    """
    size = as_size(image_size)
    if not 0 <= max_bad_fraction < 1:
        raise UserError(f"max_bad_fraction={max_bad_fraction} must lie in [0, 1).")
    if cache not in (True, False, "auto"):
        raise UserError(f"cache={cache!r} must be auto, true or false.")
    crops = random_crop(crop, resize, resample)
    if crops is not None and cache is True:
        raise UserError(
            "cache=true keeps training images at one size, which leaves no room for crop=random: "
            "use cache=auto or cache=false."
        )
    root = _checked_root(path)
    sides = {entry.name: entry for entry in directories(root)}
    own_split = {"train", "val"} <= set(sides) <= {"train", "val", "test"}
    if own_split:
        classes, train = scan(sides["train"], unconditional)
        _, val = scan(sides["val"], unconditional, classes)
    else:
        classes, images = scan(root, unconditional)
        train, val = _split(images, classes, holdout, seed, root)

    everything = train + val
    if cache == "auto":
        pixel_bytes = 3 * size[0] * size[1] * len(everything)
        file_bytes = sum(image.bytes for image in everything)
        cache = pixel_bytes <= CACHE_PIXEL_BYTES and file_bytes <= CACHE_FILE_BYTES
    augment = Augment(shift=shift, flip=flip, crop=crops)
    bad: list[str] = []

    def side(images: list[ImageFile], augment: Augment | None) -> ImageDataset:
        if cache and (augment is None or augment.crop is None):
            return _decoded(images, size, augment, bad)
        return FileImages(
            [image.path for image in images],
            torch.tensor([image.label for image in images]),
            [image.name for image in images],
            size,
            center_crop,
            [image.bytes for image in images],
            augment,
            max_bad_fraction,
        )

    source = ImageSource(
        name=root.name,
        classes=classes,
        image_size=size,
        train=side(train, augment),
        val=side(val, None),
        notes=f"{len(everything)} files below {root}",
        transform=f"RGB on white, scaled and centre-cropped to {size[0]}x{size[1]}",
    )
    check_bad_rate(bad, len(everything), max_bad_fraction)
    if bad:
        log.warning("%d of %d images were unreadable and left out.", len(bad), len(everything))
    for name, data in (("training", source.train), ("held-out", source.val)):
        if len(data) == 0:
            raise UserError(f"No {name} image in {root} can be read: replace the damaged files.")
    if captions is not None:
        found = captions_of(
            [f"train/{name}" if own_split else name for name in source.train.names]
            + [f"val/{name}" if own_split else name for name in source.val.names],
            root,
            captions,
        )
        source.train.captions = found[: len(source.train)]
        source.val.captions = found[len(source.train) :]
    return source


def _checked_root(path: str | os.PathLike[str] | None) -> Path:
    if path is None or not str(path).strip():
        raise UserError("No data folder given: add data.path=FOLDER (one sub-directory a class).")
    root = Path(path).expanduser()
    if not root.exists():
        near = next((parent for parent in root.parents if parent.exists()), Path("/"))
        raise UserError(
            f"The data folder {root} does not exist (what exists is {near.resolve()}): correct "
            f"data.path."
        )
    if not root.is_dir():
        raise UserError(f"data.path={root} is a file: give the folder that holds the images.")
    root = root.resolve()
    try:
        empty = next(os.scandir(root), None) is None
    except PermissionError as error:
        raise UserError(f"The data folder {root} may not be read: {error.strerror}.") from error
    if empty:
        raise UserError(f"The data folder {root} is empty. {ARRANGE}.")
    return root


def _split(
    files: list[ImageFile], classes: tuple[str, ...], holdout: float, seed: int, root: Path
) -> tuple[list[ImageFile], list[ImageFile]]:
    """Hold out the same share of each class, chosen by the hash of each name."""
    if not 0 < holdout < 1:
        raise UserError(f"holdout={holdout} must lie between 0 and 1, e.g. 0.05 for a twentieth.")
    groups: list[list[ImageFile]] = [[] for _ in classes]
    for file in files:
        groups[file.label].append(file)
    held: set[str] = set()
    for group in groups:
        ranked = sorted(group, key=lambda file: hash_seed("split", seed, file.name))
        count = min(max(1, round(holdout * len(group))), len(group) - 1)
        held.update(file.name for file in ranked[:count])
    if not held:
        raise UserError(f"No class of {root} has two images, so none can be held out: add more.")
    return (
        [file for file in files if file.name not in held],
        [file for file in files if file.name in held],
    )


def _decoded(
    files: list[ImageFile], size: Size, augment: Augment | None, bad: list[str]
) -> MemoryImages:
    """Decode all images, naming and leaving out the unreadable; these are added to `bad`."""
    images = torch.empty(len(files), 3, *size, dtype=torch.uint8)

    def decode(i: int) -> str:
        try:
            images[i] = decode_image(files[i].path, size, center_crop)
        except UNREADABLE as error:
            return str(error) or type(error).__name__
        return ""

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        problems = list(pool.map(decode, range(len(files))))
    for file, problem in zip(files, problems):
        if problem:
            log.warning("Skipped an unreadable image: %s (%s)", file.path, problem)
            bad.append(file.path)
    good = [i for i, problem in enumerate(problems) if not problem]
    if len(good) < len(files):
        images = images[good]
    return MemoryImages(
        images,
        torch.tensor([files[i].label for i in good], dtype=torch.long),
        [files[i].name for i in good],
        augment,
    )
