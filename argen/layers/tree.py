"""Trees of tokens in one pass: who stands above whom.

Nodes are numbered 1 to N, parents before children; number 0 is the token the tree hangs below.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reach(parents: Tensor) -> Tensor:
    """Return whether node i is node j or below it, boolean (..., N, N).

    Args:
        parents: number of each node's parent, long (..., N).
    """
    N = parents.shape[-1]
    numbers = torch.arange(1, N + 1, device=parents.device)
    found = (parents[..., None] == numbers) | (numbers[:, None] == numbers)
    for _ in range((N - 1).bit_length()):  # each product doubles the generations covered
        found = (found.float() @ found.float()) > 0
    return found


def levels(parents: Tensor) -> Tensor:
    """Return how many generations below number 0 each node is, at least 1, (..., N)."""
    return reach(parents).sum(-1)


def hide_branches(mask: Tensor | None, parents: Tensor, stored: Tensor) -> Tensor:
    """Hide from each node of a tree the nodes that are not above it.

    Args:
        mask: (1 or R, 1, n, reach) of the pass.
        parents: (k,) or (R, k).
        stored: slots of the pass, (n,) or (R, n), the nodes last.
    """
    assert mask is not None
    k, keys = parents.shape[-1], torch.arange(mask.shape[-1], device=mask.device)
    first = stored[..., -k, None]  # slot of the first node
    node = keys - first  # (reach,) or (R, reach)
    above = reach(parents)  # (k, k) or (R, k, k)
    shape = (*torch.broadcast_shapes(above.shape[:-2], node.shape[:-1]), k, len(keys))
    index = node.clamp(0, k - 1)[..., None, :].expand(shape)
    visible = (node < 0)[..., None, :] | above.expand(*shape[:-1], k).gather(-1, index)
    visible = visible if visible.ndim == 3 else visible[None]
    rows = max(len(mask), len(visible))
    mask = mask.expand(rows, -1, -1, -1).clone()
    mask[:, :, -k:] &= visible[:, None]
    return mask
