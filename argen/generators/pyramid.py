"""What a next-scale generator needs of its tokenizer: the sum of scales, seen at any of them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Pyramid(Protocol):
    """A multi-scale quantiser without its search; maps are (B, C, h, w), rows (B, n, C)."""

    def blank(self, batch: int) -> Tensor:
        """Return the empty map."""

    def rows(self, ids: Tensor) -> Tensor:
        """Return the vectors of ids."""

    def spread(self, rows_BnC: Tensor, k: int) -> Tensor:
        """Return what the vectors of scale `k` add to the map."""

    def at_scale(self, map_BChw: Tensor, k: int) -> Tensor:
        """Return the map shrunk to scale `k`, as vectors."""

    def inputs(self, ids_BL: Tensor) -> Tensor:
        """Return the map so far at every scale but the first, (B, L - n_0, C)."""
