"""The images below a directory: which files, in which classes."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from argen.errors import UserError

log = logging.getLogger(__name__)

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
ARRANGE = "Arrange them as FOLDER/cat/1.jpg, FOLDER/dog/2.jpg: one sub-directory a class"


@dataclass(frozen=True)
class ImageFile:
    """A file found on disk: its path, its path below the data folder, its class, its bytes."""

    path: str
    name: str
    label: int
    bytes: int


def directories(root: Path) -> list[Path]:
    """Return the visible directories right below `root`, sorted."""
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and visible(entry.name))


def visible(name: str) -> bool:
    """Whether a file or directory is a user's own, not a system's."""
    return not name.startswith(".") and name != "__MACOSX"


def scan(
    root: Path, unconditional: bool, expected: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], list[ImageFile]]:
    """Find the classes and images below `root`; `expected` gives the classes of the other side.

    Raises:
        UserError: unless there are two classes with images, or `unconditional` and any image.
    """
    loose = images_below(root, root, nested=False)
    groups = [("all", loose)] if unconditional else []
    for directory in directories(root):
        found = images_below(directory, root)
        if unconditional:
            loose.extend(found)
        elif found:
            groups.append((directory.name, found))
        else:
            log.warning("Left out the folder %s: it holds no images.", directory)
    classes = tuple(name for name, found in groups if found)
    kinds = ", ".join(extension[1:] for extension in EXTENSIONS)
    if not classes and not loose:
        raise UserError(f"There are no images ({kinds}) in {root}. {ARRANGE}.")
    if not classes:
        raise UserError(
            f"The {len(loose)} images of {root} lie in no class folder. {ARRANGE}; or set "
            f"data.unconditional=true to learn them as one class."
        )
    if unconditional:
        return classes, [ImageFile(path, name, 0, n) for path, name, n in loose]
    if loose:
        log.warning("Left out %d images directly in %s: in no class.", len(loose), root)
    if expected is None and len(classes) == 1:
        raise UserError(
            f"Only one class, {classes[0]!r}, has images in {root}: add another class folder, "
            f"give the folder that holds the class folders, or set data.unconditional=true."
        )
    unknown = sorted(set(classes) - set(expected or classes))
    if unknown:
        raise UserError(
            f"{root} has classes that the training side lacks: {', '.join(unknown[:5])}. Use the "
            f"same class folders below train and val."
        )
    order = expected or classes
    return order, [
        ImageFile(path, name, order.index(group), n)
        for group, found in groups
        for path, name, n in found
    ]


def images_below(top: Path, root: Path, nested: bool = True) -> list[tuple[str, str, int]]:
    """Return (path, path below root, bytes) of the images below `top`, sorted."""
    found, seen = [], set()
    pending = [str(top)]
    while pending:
        directory = pending.pop()
        real = os.path.realpath(directory)
        if real in seen:  # a symbolic link that leads back
            continue
        seen.add(real)
        try:
            entries = list(os.scandir(directory))
        except OSError as error:
            raise UserError(f"The folder {directory} cannot be read: {error.strerror}.") from error
        for entry in entries:
            if not visible(entry.name):
                continue
            if entry.is_dir():
                if nested:
                    pending.append(entry.path)
            elif entry.name.lower().endswith(EXTENSIONS):
                try:
                    n = entry.stat().st_size
                except OSError:  # a dangling link: found unreadable when it is decoded
                    n = 0
                found.append((entry.path, os.path.relpath(entry.path, root), n))
    return sorted(found)
