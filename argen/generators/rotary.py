"""The rotary table of a condition prefix and the codes behind it, by name or by a factory.

Shapes: T prefix tokens, L codes, hd head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from argen.errors import UserError, suggest
from argen.layers.rope import rope_table_1d, rope_table_2d, with_prefix
from argen.spec import CodeSpec

# What makes the rotary rows (L, hd/2, 2) of the codes, called with (spec, head_dim, base=...).
RotaryTable = Callable[..., Tensor]


def _by_sequence(spec: CodeSpec, head_dim: int, *, base: float) -> Tensor:
    return rope_table_1d(spec.length, head_dim, base=base)


def _by_grid(spec: CodeSpec, head_dim: int, *, base: float) -> Tensor:
    """Each segment turns on a grid of its own."""
    return torch.cat([rope_table_2d(s.shape, head_dim, base=base) for s in spec.segments])


ROTARY_TABLES: dict[str, RotaryTable] = {"2d": _by_grid, "1d": _by_sequence}


def rotary_table(
    spec: CodeSpec,
    head_dim: int,
    rope: str | RotaryTable = "2d",
    *,
    base: float = 10000.0,
    prefix: int,
    prefix_kind: str,
) -> Tensor:
    """Return the rotary rows (T + L, hd/2, 2) of T prefix tokens and L codes.

    Args:
        spec: the codes.
        head_dim: width hd of an attention head.
        rope: `2d`, each segment on a grid of its own; `1d`, a sequence; or what makes the rows
            (L, hd/2, 2) from (spec, head_dim, base=...): in YAML, a `_target_` with
            `_partial_: true`.
        base: base of the frequencies.
        prefix: T.
        prefix_kind: rows of the prefix, see `with_prefix`.

    Raises:
        UserError: for an unknown name, or a table of another shape.
    """
    if not isinstance(rope, str):
        table = rope(spec, head_dim, base=base)
        if table.shape != (spec.length, head_dim // 2, 2):
            raise UserError(
                f"The rotary table of rope= has the shape {tuple(table.shape)}, but "
                f"{spec.describe()} needs {(spec.length, head_dim // 2, 2)}: one row a code, "
                "(cos, sin) for each pair of channels."
            )
    elif rope in ROTARY_TABLES:
        table = ROTARY_TABLES[rope](spec, head_dim, base=base)
    else:
        raise UserError(
            f"Unknown rope {rope!r}; use {', '.join(ROTARY_TABLES)}, or a _target_ of your own "
            f"with _partial_: true.{suggest(rope, ROTARY_TABLES)}"
        )
    return with_prefix(table, prefix, kind=prefix_kind)
