"""Captions of images in a folder: one file for all of them, or a text file beside each.

    captions.txt     cat/1.jpg<TAB>a cat on a mat
    captions.csv     file,caption          (or file_name,text)
    captions.json    {"cat/1.jpg": "a cat on a mat"}
    beside           cat/1.txt holds the caption of cat/1.jpg

Files are named by their place below the data folder; the bare name will do where it is unique.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from argen.errors import UserError

FILE_COLUMNS, CAPTION_COLUMNS = ("file", "file_name"), ("caption", "text")


def captions_of(places: Sequence[str], root: Path, captions: str) -> list[str]:
    """Return the caption of each image.

    Args:
        places: paths of the images below `root`.
        root: the data folder.
        captions: a file, by its place below `root` or anywhere else, or `beside`.

    Raises:
        UserError: images without a caption, captions that fit several images, or a file that
            is missing or damaged.
    """
    places = [PurePath(place).as_posix() for place in places]
    if captions == "beside":
        return _complete(places, [_beside(root / place) for place in places], "a .txt beside it")
    path = root / Path(captions).expanduser()
    table = _read(path)
    bare = Counter(PurePath(place).name for place in places)
    found = []
    for place in places:
        name = PurePath(place).name
        if place not in table and name in table and bare[name] > 1:
            raise UserError(
                f"{path} has a caption of {name}, which {bare[name]} images are called: name "
                f"them by their place below {root}, e.g. {place}."
            )
        found.append(table.get(place, table.get(name)))
    return _complete(places, found, f"a line in {path}")


def _complete(places: Sequence[str], found: Sequence[str | None], what: str) -> list[str]:
    captions = [" ".join((caption or "").split()) for caption in found]
    missing = [place for place, caption in zip(places, captions) if not caption]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(
            f"{len(missing)} of {len(places)} images have no caption: {shown}. Give each {what}."
        )
    return captions


def _beside(image: Path) -> str | None:
    path = image.with_suffix(".txt")
    return _text(path) if path.is_file() else None


def _read(path: Path) -> dict[str, str]:
    readers = {".json": _from_json, ".csv": _from_csv, ".txt": _from_lines}
    if path.suffix.lower() not in readers:
        raise UserError(
            f"data.captions={path.name} must be a .txt, .csv or .json file, or `beside` for a .txt "
            "beside each image."
        )
    if not path.is_file():
        raise UserError(f"There is no file of captions {path}: correct data.captions.")
    table = readers[path.suffix.lower()](path, _text(path))
    return {PurePath(name).as_posix(): caption for name, caption in table.items()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error}).") from error


def _from_json(path: Path, text: str) -> dict[str, str]:
    try:
        table = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}).") from error
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise UserError(f'{path} must hold one object of captions: {{"cat/1.jpg": "a cat"}}.')
    return table


def _from_csv(path: Path, text: str) -> dict[str, str]:
    rows = csv.DictReader(text.splitlines(keepends=True))
    columns = [column.strip().lower() for column in rows.fieldnames or []]
    rows.fieldnames = columns
    file = next((column for column in FILE_COLUMNS if column in columns), None)
    caption = next((column for column in CAPTION_COLUMNS if column in columns), None)
    if file is None or caption is None:
        raise UserError(
            f"{path} must begin with a line of column names, file,caption; found "
            f"{','.join(columns) or 'nothing'}."
        )
    return {(row[file] or "").strip(): row[caption] or "" for row in rows}


def _from_lines(path: Path, text: str) -> dict[str, str]:
    table = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, tab, caption = line.partition("\t")
        if not tab:
            raise UserError(
                f"Line {number} of {path} has no tab between file and caption: {line[:60]!r}."
            )
        table[name.strip()] = caption
    return table
