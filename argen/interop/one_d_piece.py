"""One-D-Piece (turingmotors/One-D-Piece, Apache-2.0, arXiv 2501.10064): TiTok cut at any length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from argen.interop.base import Imported
from argen.interop.maskgit import import_generator as import_generator
from argen.interop.titok import tokenizer as titok

SOURCE = "one_d_piece"


def import_tokenizer(
    checkpoint: Any, *, source: str, image_size: int = 256, heads: Sequence[int] | None = None
) -> Imported:
    """Import a released file; arguments as for `argen.interop.titok.import_tokenizer`."""
    return titok.import_tokenizer(
        checkpoint, source=source, image_size=image_size, heads=heads, one_d_piece=True
    )
