"""What a tar shard of images holds: one image a key, with its class beside it.

    000017.jpg   000017.cls   000018.png   000018.cls ...

The layout of webdataset. The class stands in `.cls` (a number, or a class name) or in `.json`
(`{"label": 3}` or `{"class": "cat"}`), a caption in `.txt`.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from argen.data.folder_scan import EXTENSIONS
from argen.errors import UserError, suggest

IMAGES = tuple(extension[1:] for extension in EXTENSIONS)
BESIDE = ("cls", "json", "txt")


@dataclass(frozen=True)
class Member:
    """An image inside a tar file: its key, where its bytes lie, its class and caption."""

    key: str
    start: int
    size: int
    label: int
    caption: str | None = None


def split_name(name: str) -> tuple[str, str]:
    """Return the key and the lower-case extension: both end and begin at the first dot."""
    directory, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return directory + slash + stem, extension.lower()


def image_in(found: Iterable[str]) -> str | None:
    """Return the extension of the image among the extensions of one key."""
    return next((name for name in IMAGES if name in found), None)


def label_in(parts: Mapping[str, bytes], classes: Sequence[str], *, unconditional: bool) -> int:
    """Return the class of one key from the bytes beside its image.

    Raises:
        ValueError: there is none, or it is none of the classes.
    """
    if unconditional:
        return 0
    if "cls" in parts:
        word = parts["cls"].decode().strip()
    elif "json" in parts:
        read = json.loads(parts["json"])
        word = str(read.get("label", read.get("class", ""))).strip()
    else:
        raise ValueError("it has neither .cls nor .json beside it")
    if word in classes:
        return list(classes).index(word)
    if word.isdigit() and int(word) < len(classes):
        return int(word)
    raise ValueError(
        f"its class {word!r} is none of the {len(classes)}.{suggest(word, list(classes))}"
    )


def read_members(
    path: Path, classes: Sequence[str], *, unconditional: bool = False
) -> tuple[list[Member], list[str]]:
    """Read the directory of a tar file, its labels and nothing of its images.

    Returns:
        the images, and a line for each that was left out.

    Raises:
        UserError: the file is not there, is no tar file, or is cut short.
    """
    members: list[Member] = []
    problems: list[str] = []
    key, place, parts = "", None, dict[str, bytes]()

    def close() -> None:
        if place is None:
            return
        try:
            label = label_in(parts, classes, unconditional=unconditional)
        except ValueError as error:
            problems.append(f"{path}: {key}: {error}")
        else:
            caption = parts["txt"].decode().strip() if "txt" in parts else None
            members.append(Member(key, *place, label, caption))

    try:
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                if not entry.isreg():
                    continue
                name, extension = split_name(entry.name)
                if name != key:
                    close()
                    key, place, parts = name, None, {}
                if extension in IMAGES and place is None:
                    place = (entry.offset_data, entry.size)
                elif extension in BESIDE:
                    file = archive.extractfile(entry)
                    parts[extension] = file.read() if file else b""
            close()
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"{path} cannot be read as an uncompressed tar file ({error}): write it again."
        ) from error
    return members, problems
