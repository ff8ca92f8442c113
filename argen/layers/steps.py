"""Codes in the order they are sampled: step s is the s-th code, at position order[s].

Shapes: R rows, L codes, n codes of one pass.
"""

from __future__ import annotations

from torch import Tensor


def take(codes: Tensor, steps: Tensor) -> Tensor:
    """Return codes or vectors (R, n, ...) of (R, L, ...) at steps (n,) or (R, n)."""
    if steps.ndim == 1:
        return codes[:, steps]
    index = steps.view(*steps.shape, *(1,) * (codes.ndim - 2))
    return codes.gather(1, index.expand(codes.shape[0], -1, *codes.shape[2:]))


def positions_of(steps: Tensor, order: Tensor | None) -> Tensor:
    """Return the positions of steps (n,) or (R, n), (n,) or (R, n)."""
    if order is None:
        return steps
    if order.ndim == 1:
        return order[steps]
    return order[:, steps] if steps.ndim == 1 else order.gather(1, steps)


def arrange(codes: Tensor, order: Tensor | None) -> Tensor:
    """Put codes (B, L, ...) from the tokenizer's order into the order they are drawn."""
    return codes if order is None else take(codes, order)


def restore(values: Tensor, order: Tensor | None) -> Tensor:
    """Put values (B, L, ...) from the order they are drawn back into the tokenizer's."""
    return values if order is None else take(values, order.argsort(-1))
