"""Prompts as people give them: one, a list, or a file with one a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from argen.errors import UserError


def as_texts(text: str | Sequence[str]) -> list[str]:
    """Return a list of texts from one or several.

    Raises:
        UserError: for nothing at all.
    """
    # Words such as 7 or true come as what they look like.
    texts = [text] if isinstance(text, str) or not isinstance(text, Sequence) else list(text)
    if not texts:
        raise UserError("text=[] asks for nothing: name at least one, e.g. text='a red heart'.")
    return [str(part) for part in texts]


def read_texts(path: Path | str) -> list[str]:
    """Return the lines of a file, empty ones left out.

    Raises:
        UserError: if it cannot be read or holds none.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"text_file={path} cannot be read ({error}).") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise UserError(f"text_file={path} holds no text: write one a line.")
    return texts
