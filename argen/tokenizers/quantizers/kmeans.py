"""k-means over the vectors of all processes, to start a codebook where the data is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from argen.layers.collective import all_sum, draw_rows
from argen.tokenizers.quantizers.base import nearest_code


def assignment_sums(z_NC: Tensor, ids_N: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Return, over all processes, the vectors of each code (K,) and their sum (K, C)."""
    ids_N, z_NC = ids_N.reshape(-1), z_NC.detach().reshape(-1, z_NC.shape[-1])
    count_K = torch.bincount(ids_N, minlength=codes).to(z_NC.dtype)
    sum_KC = z_NC.new_zeros(codes, z_NC.shape[1]).index_add_(0, ids_N, z_NC)
    return all_sum(count_K), all_sum(sum_KC)


@torch.no_grad()
def kmeans(
    z_NC: Tensor, codes: int, *, steps: int = 10, unit: bool = False, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return cluster centres (K, C) and their sizes (K,), the same on every process.

    Args:
        z_NC: this process's vectors.
        codes: number of clusters K.
        steps: Lloyd's iterations.
        unit: keep the centres at unit length (for unit vectors).
        start: initial centres (K, C); drawn from the vectors when None.
    """
    centres = draw_rows(z_NC, codes) if start is None else start
    for _ in range(steps):
        ids = nearest_code(z_NC, centres)
        count, total = assignment_sums(z_NC, ids, codes)
        means = total / count.clamp(min=1.0)[:, None]
        if unit:
            means = F.normalize(means, dim=-1)
        centres = torch.where(count[:, None] > 0, means, centres)
    count, _ = assignment_sums(z_NC, nearest_code(z_NC, centres), codes)
    return centres, count
