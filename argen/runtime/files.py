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
        CheckpointError: the file is missing or damaged; it is named.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}).") from error


def sha256_of(path: Path | str) -> str:
    """Return the sha256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
