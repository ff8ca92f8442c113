"""A locality-aware order: each pass samples codes near known ones but far from each other.

Codes depend most on their neighbours, so a pass that keeps its codes apart and close to what is
known loses little by sampling them together (the order of LPD, arXiv 2507.01957).

Shapes: B samples, L positions of an h x w grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def local_order(
    grid: tuple[int, int], counts: list[int], known_BL: Tensor, tie_BL: Tensor
) -> Tensor:
    """Return positions in the order they are sampled, (B, sum of counts).

    Args:
        grid: (h, w).
        counts: how many codes each pass samples.
        known_BL: which positions are given beforehand, boolean.
        tie_BL: numbers in (0, 1) that decide between positions that are equally good.
    """
    h, w = grid
    place = torch.arange(h * w, device=known_BL.device)
    place_L2 = torch.stack((place // w, place % w), dim=-1).float()
    distance = torch.cdist(place_L2, place_L2)  # L L
    row = torch.arange(len(known_BL), device=known_BL.device)
    far = float(h + w)
    near = torch.where(known_BL[:, None], distance, far).amin(-1)  # B L, to the nearest known one
    taken, order = known_BL.clone(), []
    for count in counts:
        apart = torch.full_like(near, far)  # to the nearest one of the same pass
        # Half the distance at which so many would lie if spread evenly.
        spacing = 0.5 * math.sqrt(h * w / count)
        reached = near.clone()
        for _ in range(count):
            crowded = apart < spacing
            # First what is not crowded, then what is near; if all are crowded, the least so.
            cost = torch.where(crowded, 2 * far - apart, near) + 0.5 * tie_BL
            chosen = cost.masked_fill(taken, float("inf")).argmin(-1)  # B
            order.append(chosen)
            taken[row, chosen] = True
            apart = torch.minimum(apart, distance[chosen])
            reached = torch.minimum(reached, distance[chosen])
        near = reached
    return torch.stack(order, dim=1) if order else known_BL.new_zeros(len(row), 0).long()
