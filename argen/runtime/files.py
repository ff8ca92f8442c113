"""Files that are whole or not there: written under another name, then renamed; JSON; checksums."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from argen.errors import CheckpointError


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path` and rename it into place on success.

    A reader, or a process that dies half-way, never sees half a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path | str, data: Any, *, allow_nan: bool = True) -> None:
    """Write indented JSON, whole or not at all.

    Args:
        path: the file.
        data: plain values.
        allow_nan: write NaN and infinity, which not every reader of JSON takes.

    Raises:
        ValueError: a number is not finite and `allow_nan` is false.
    """
    with replacing(path) as temporary:
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=allow_nan)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Read JSON.

    Raises:
        CheckpointError: the file is missing, no regular file, or damaged; it is named.
    """
    path = Path(path)
    try:
        # Anything but a regular file may wait for ever: a pipe, a device.
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is not a regular file; put the JSON there itself.")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist.") from error
    except RecursionError as error:
        raise CheckpointError(f"{path} is nested too deeply to be argen's; write it again.") from (
            error
        )
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not valid JSON ({error}).") from error


def read_json_object(path: Path | str) -> dict[str, Any]:
    """Read a JSON object, `{...}`.

    Raises:
        CheckpointError: as `read_json`, or the file holds another value.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        shown = json.dumps(found)[:40]
        raise CheckpointError(
            f"{path} holds {shown}, where a JSON object {{...}} belongs: copy or write it again."
        )
    return found


def file_inside(directory: Path | str, name: str, *, links: bool = False) -> Path:
    """Return the place of a file of a directory, which may come from a stranger.

    Args:
        directory: its files may be read.
        name: relative to it.
        links: allow links that lead out of it.

    Raises:
        CheckpointError: the name or a link leads out of the directory, or what is there is no
            regular file; a file that is missing is left to who reads it.
    """
    directory = Path(directory)
    place = directory / name
    try:
        home, real = directory.resolve(), place.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{place} cannot be read ({error}).") from error
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointError(f"{directory} names {name!r}, which lies outside it.")
    if not links and not real.is_relative_to(home):
        raise CheckpointError(
            f"{place} is a link to {real}, outside its directory: copy the file itself there "
            "(cp -L), or load with trust=true if you made the link."
        )
    if real.exists() and not real.is_file():
        raise CheckpointError(f"{place} is not a regular file; copy the file itself there.")
    return place


def sha256_of(path: Path | str) -> str:
    """Return the sha256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
