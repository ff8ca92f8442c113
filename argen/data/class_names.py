"""Names of classes: how a word finds its class, and how classes of two sides are matched.

Names are compared under Unicode's composed form (NFC), in which the two ways to write an accent are
one. An exact match comes first; else one that differs in case alone, if it is the only one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from argen.errors import UserError


def composed(name: str) -> str:
    """Return a name in the form in which names are compared."""
    return unicodedata.normalize("NFC", name).strip()


def find_class(name: str, names: Sequence[str]) -> int | None:
    """Return the number of the class with a name, None where there is none.

    Raises:
        UserError: several classes are called so.
    """
    wanted = composed(name)
    same = [i for i, known in enumerate(names) if composed(known) == wanted]
    if not same:
        folded = wanted.casefold()
        same = [i for i, known in enumerate(names) if composed(known).casefold() == folded]
    if len(same) > 1:
        which = ", ".join(f"{i} ({names[i]!r})" for i in same)
        raise UserError(f"{name!r} may be any of {len(same)} classes: give the id, {which}.")
    return same[0] if same else None


def match_classes(model: Sequence[str], data: Sequence[str], *, count: int) -> list[int]:
    """Return the number in the data of each class of a model.

    By name where both have names. By position where the model stores none, or one side merely
    numbers its classes 0, 1, ...; then both must have equally many.

    Args:
        model: class names of the model; empty when not known.
        data: class names of the data.
        count: number of classes of the model.

    Raises:
        UserError: the classes are not the same.
    """
    numbered = any([composed(n) for n in names] == [*map(str, range(len(names)))]
                   for names in (model, data))  # fmt: skip
    if not model or numbered:
        if count != len(data):
            raise UserError(
                f"The model has {count} classes and the data {len(data)}, and nothing says which "
                "belong together: choose the data= that it was trained on, or give the model its "
                "names (argen convert class_names=FILE)."
            )
        return list(range(count))
    found = [find_class(name, data) for name in model]
    lacking = [name for name, place in zip(model, found) if place is None]
    more = [name for i, name in enumerate(data) if i not in found]
    if lacking or more:
        parts = [
            f"{side} {', '.join(map(repr, names[:4]))}{', ...' if len(names) > 4 else ''}"
            for side, names in (("the data lacks", lacking), ("the model lacks", more))
            if names
        ]
        raise UserError(
            f"The classes of the model and of the data are not the same: {'; '.join(parts)}. Give "
            "the data those folders, or choose the data= that the model was trained on."
        )
    places = [place for place in found if place is not None]
    if len(set(places)) < len(places):
        raise UserError("Two classes of the model have the name of one class of the data.")
    return places
