"""Classes as people name them: names, ids, a mixture, or all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from argen.errors import UserError, suggest


def class_ids(classes: Any, names: Sequence[str], *, count: int) -> list[int]:
    """Return class ids.

    Args:
        classes: a name or an id, a list or tensor of them, or "all".
        names: class names in the order of the ids; empty when not known.
        count: number of classes.

    Raises:
        UserError: for a class that is not known, with close matches.
    """
    if hasattr(classes, "tolist"):
        classes = classes.tolist()
    if isinstance(classes, str | int):
        classes = [classes]
    if list(classes) == ["all"]:
        return list(range(count))
    known = {name.lower(): i for i, name in enumerate(names)}
    return [_class_id(str(item).strip(), known, names, count) for item in classes]


def _class_id(text: str, known: dict[str, int], names: Sequence[str], count: int) -> int:
    if text.lower() in known:
        return known[text.lower()]
    if text.lstrip("-").isdigit():
        if not 0 <= int(text) < count:
            raise UserError(
                f"Class {text} is outside 0 to {count - 1}; this model knows {count} classes."
            )
        return int(text)
    if not names:
        raise UserError(
            f"Unknown class {text!r}: this model stores no class names; use ids 0 to {count - 1}."
        )
    shown = ", ".join(names[:12]) + (", ..." if count > 12 else "")
    raise UserError(f"Unknown class {text!r}.{suggest(text, names)} Known: {shown}.")
