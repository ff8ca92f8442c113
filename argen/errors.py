"""The one error a user can fix.

Everything that a user's input can get wrong is raised as `UserError` (or a subclass), with a
message that names the cause and the fix in one line. Command lines print it without a traceback
and exit with status 2; in Python it is an ordinary `ValueError`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input; the message says what is wrong and how to put it right."""


class SpecError(UserError):
    """Codes, checkpoints or models that do not speak the same code language."""


class IncompatibleError(UserError):
    """Two parts that do not fit; the message names what would."""


class Preempted(Exception):
    """A run that saved and stopped for a signal; the same command goes on from there.

    Commands exit with `CODE` (EX_TEMPFAIL), on which a scheduler's script can requeue.
    """

    CODE = 75


class CheckpointError(UserError):
    """A weight file that is missing, damaged, unsafe or made for another model."""


def suggest(word: str, options: Iterable[str], *, n: int = 3) -> str:
    """Return `" Did you mean 'a' or 'b'?"` for a misspelt word, or an empty string.

    Args:
        word: what was typed.
        options: the words that would have been accepted.
        n: how many suggestions to give at most.
    """
    lowered = {option.lower(): option for option in options}
    close = get_close_matches(word.lower(), lowered, n=n, cutoff=0.5)
    if not close:
        return ""
    return " Did you mean " + " or ".join(f"'{lowered[c]}'" for c in close) + "?"
