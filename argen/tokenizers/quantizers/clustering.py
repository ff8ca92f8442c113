"""Online clustered codebook, CVQ (arXiv 2307.15139): unused codes move to encoder vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from argen.layers.collective import world_size
from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.tokenizers.quantizers.base import Quantized, nearest_code
from argen.tokenizers.quantizers.vq import VQ


class ClusteringVQ(VQ):
    """A codebook learned by gradient whose rarely used rows drift to the nearest batch vectors.

    After each training pass row k becomes row (1 - a) + vector a, with a near 1 for codes that are
    hardly used and near 0 for codes in use; the pass itself still uses the old rows.

    Args:
        codes: number of rows K.
        dim: width C.
        usage_decay: decay of the moving average of each code's share of the vectors.
        options: as for `VQ`.
    """

    def __init__(self, codes: int, dim: int, *, usage_decay: float = 0.99, **options: Any) -> None:
        super().__init__(codes, dim, **options)
        self.usage_decay = usage_decay
        self.usage: Tensor
        self.register_buffer("usage", torch.zeros(codes))

    def rows(self) -> Tensor:
        """Return the codebook (K, C) as it is compared and looked up."""
        weight = self.codebook.weight.float()
        if self.training:
            # The rows move in place before the backward pass of the step that read them.
            weight = weight.clone()
        return F.normalize(weight, dim=-1) if self.l2_norm else weight

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise `z` (..., C)."""
        quantized = super().forward(z, noise=noise)
        if self.training and quantized.ids is not None:
            self._move(z.detach().reshape(-1, self.dim), quantized.ids.flatten())
        return quantized

    @torch.no_grad()
    def _move(self, z_NC: Tensor, ids_N: Tensor) -> None:
        z_NC, ids_N = all_rows(z_NC), all_rows(ids_N)
        K = self.vocab_sizes[0]
        share_K = ids_N.bincount(minlength=K).float() / ids_N.numel()
        self.usage.lerp_(share_K, 1.0 - self.usage_decay)
        nearest_K = nearest_code(self.rows(), self.normalise(z_NC))
        # The exponent's constants are the published ones.
        a_K1 = torch.exp(-self.usage * K * 10 / (1.0 - self.usage_decay) - 1e-3)[:, None]
        weight = self.codebook.weight
        weight.copy_(weight * (1.0 - a_K1) + z_NC[nearest_K] * a_K1)


def all_rows(x: Tensor) -> Tensor:
    """Return the rows of all processes, which must hold equally many, in rank order."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)
