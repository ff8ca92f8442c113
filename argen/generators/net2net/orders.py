"""Orders of a code grid: the permutations that taming-transformers offers (arXiv 2012.09841).

An order lists raster positions in the order they are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from argen.errors import IncompatibleError, UserError, suggest

ORDERS = ("raster", "alternate", "subsample", "zcurve", "spiral_out", "spiral_in", "random")


def grid_order(order: str | Sequence[int], grid: tuple[int, int]) -> list[int]:
    """Return an order of a grid.

    Args:
        order: `raster`; `alternate`, every other row from right to left; `subsample`, coarse grids
            first; `zcurve`, Morton's; `spiral_out` from the centre and `spiral_in` from the
            corner; `random`, one fixed permutation; or the positions themselves.
        grid: (h, w).

    Raises:
        UserError: for an unknown name.
        IncompatibleError: for a list that is not a permutation of the grid, or a grid that the
            order is not defined on.
    """
    h, w = grid
    if not isinstance(order, str):
        listed = [int(p) for p in order]
        if sorted(listed) != list(range(h * w)):
            raise IncompatibleError(
                f"An order must hold each of the {h * w} positions of the codes exactly once."
            )
        return listed
    if order not in ORDERS:
        raise UserError(
            f"Unknown order {order!r}; use {', '.join(ORDERS)}.{suggest(order, ORDERS)}"
        )
    if order == "raster":
        return list(range(h * w))
    if order == "random":
        return np.random.RandomState(1).permutation(h * w).tolist()
    if order == "alternate":
        return [i * w + (j if i % 2 == 0 else w - 1 - j) for i in range(h) for j in range(w)]
    if order in ("spiral_out", "spiral_in"):
        outwards = _spiral(h, w)
        return outwards if order == "spiral_out" else outwards[::-1]
    if order == "subsample" and (h != w or h & (h - 1)):
        raise IncompatibleError(
            f"order=subsample needs a square grid with sides of a power of two, not {h}x{w}."
        )
    bits = max(h, w).bit_length()
    cells = [(i, j) for i in range(h) for j in range(w)]
    digits = range(bits) if order == "subsample" else reversed(range(bits))
    places = list(digits)  # the most significant digit of the sorting key first
    cells.sort(key=lambda cell: [(cell[0] >> b & 1, cell[1] >> b & 1) for b in places])
    return [i * w + j for i, j in cells]


def _spiral(h: int, w: int) -> list[int]:
    """Walk outwards from the centre: up, right, down, left, in arms of 1, 1, 2, 2, 3, 3, ... cells.

    Cells outside the grid are walked over but not listed.
    """
    i, j = h // 2, max(0, w // 2 - 1)
    found = [i * w + j]
    turn = 0
    while len(found) < h * w:
        di, dj = ((-1, 0), (0, 1), (1, 0), (0, -1))[turn % 4]
        for _ in range(turn // 2 + 1):
            i, j = i + di, j + dj
            if 0 <= i < h and 0 <= j < w:
                found.append(i * w + j)
        turn += 1
    return found
