"""Attention patterns as one predicate: may query position q look at key position k?

A predicate takes broadcastable index tensors (rows, queries, keys) and returns booleans. It is
rendered as a dense mask for scaled-dot-product attention on any device, or as a FlexAttention
block mask on CUDA, so that a pattern is written once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Predicate = Callable[[Tensor, Tensor, Tensor], Tensor]


def causal(row: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Each position sees itself and what came before."""
    return k <= q


def block_causal(group_L: Tensor) -> Predicate:
    """Each position sees its own group and all earlier groups; `group_L` numbers positions."""

    def allowed(row: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return group_L[k] <= group_L[q]

    return allowed


def text_masked(mask_BT: Tensor) -> Predicate:
    """Causal, with padded condition tokens hidden from all but themselves.

    Args:
        mask_BT: true for valid condition tokens, which stand first in the sequence.
    """
    length = mask_BT.shape[1]

    def allowed(row: Tensor, q: Tensor, k: Tensor) -> Tensor:
        text = mask_BT.bool()[row, k.clamp(max=length - 1)]
        return (k <= q) & (text | (k >= length) | (k == q))

    return allowed


def prefix_visible(length: int) -> Predicate:
    """Causal, but the first `length` positions all see each other."""

    def allowed(row: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) | ((k < length) & (q < length))

    return allowed


def dense_mask(
    predicate: Predicate, queries: Tensor, keys: Tensor, *, rows: int | None = None
) -> Tensor:
    """Render a predicate as a boolean mask for scaled-dot-product attention.

    Args:
        predicate: the pattern.
        queries: positions (n,) of the queries, or (R, n) where rows differ.
        keys: positions (m,) of the keys.
        rows: number of rows R when the predicate depends on the row.

    Returns:
        (1 or R, 1, n, m), true where the query may look.
    """
    if queries.ndim == 2:
        rows = queries.shape[0]
    q = queries[..., None] if queries.ndim == 2 else queries[None, :, None]
    row = torch.arange(rows or 1, device=queries.device)[:, None, None]
    return predicate(row, q, keys[None, None, :])[:, None]
