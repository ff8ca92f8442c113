"""Rotary position tables and their application (arXiv 2104.09864).

A table has one row a position: (L, head_dim / 2, 2) holding (cos, sin) of the angles by which the
adjacent channel pairs (2k, 2k + 1) of queries and keys are turned. Rows are picked by the caller,
so positions may come in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from argen.errors import UserError


def rope_table_1d(length: int, head_dim: int, *, base: float = 10000.0) -> Tensor:
    """Return the table (length, head_dim / 2, 2) of a sequence."""
    if head_dim % 2:
        raise UserError(f"1-D rotary positions need an even head width, not {head_dim}.")
    freq = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)  # (hd/2,)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * freq  # (L, hd/2)
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


def rope_table_2d(grid: tuple[int, int], head_dim: int, *, base: float = 10000.0) -> Tensor:
    """Return the table (h * w, head_dim / 2, 2) of a raster grid.

    The first half of the angles turns with the row, the second with the column.
    """
    if head_dim % 4:
        raise UserError(f"2-D rotary positions need a head width divisible by 4, not {head_dim}.")
    h, w = grid
    half = head_dim // 2
    freq = base ** (-torch.arange(0, half, 2, dtype=torch.float32) / half)  # (hd/4,)
    rows = torch.arange(h, dtype=torch.float32)[:, None] * freq  # (h, hd/4)
    columns = torch.arange(w, dtype=torch.float32)[:, None] * freq  # (w, hd/4)
    angle = torch.cat(
        (rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)), dim=-1
    ).reshape(h * w, half)
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


def rope_table_at(rows: Tensor, columns: Tensor, head_dim: int, *, base: float = 10000.0) -> Tensor:
    """Return the 2-D table (n, head_dim / 2, 2) of n places, which need not be whole numbers.

    Args:
        rows: row of each place, (n,).
        columns: column of each place, (n,).
        head_dim: head width, divisible by 4.
        base: base of the frequencies.
    """
    if head_dim % 4:
        raise UserError(f"2-D rotary positions need a head width divisible by 4, not {head_dim}.")
    half = head_dim // 2
    freq = base ** (-torch.arange(0, half, 2, dtype=torch.float32) / half)  # (hd/4,)
    angle = torch.cat((rows[:, None] * freq, columns[:, None] * freq), dim=-1)  # (n, hd/2)
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


def with_prefix(table: Tensor, length: int, *, kind: str) -> Tensor:
    """Put `length` rows for condition tokens before a table.

    Args:
        table: (L, head_dim / 2, 2).
        length: number of condition tokens.
        kind: `identity` leaves condition tokens unturned; `zero` sets cos and sin to 0, which
            turns their queries and keys into zero vectors, so that every query gives them logit 0:
            LlamaGen and its descendants were trained this way.
    """
    rows = table.new_zeros(length, *table.shape[1:])
    if kind == "identity":
        rows[..., 0] = 1.0
    elif kind != "zero":
        raise UserError(f"Unknown rotary prefix {kind!r}; use 'identity' or 'zero'.")
    return torch.cat((rows, table))


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Turn `x` (B, heads, n, head_dim) by `table` (n, hd/2, 2) or (B, 1, n, hd/2, 2)."""
    pairs = x.float().unflatten(-1, (-1, 2))  # (B, heads, n, hd/2, 2)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # One operation in place of eight, whose cost one-token passes feel; compilers fuse them.
        turned = torch.view_as_real(
            torch.view_as_complex(pairs) * torch.view_as_complex(table.float())
        )
    else:
        cos, sin = table[..., 0], table[..., 1]
        a, b = pairs[..., 0], pairs[..., 1]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)
