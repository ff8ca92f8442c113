"""Vector quantisation whose codebook follows moving averages instead of gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from argen.tokenizers.quantizers.base import best_product
from argen.tokenizers.quantizers.codebook import HEADROOM, Codebook


class EMAVQ(Codebook):
    """Each row is the moving average of the vectors it was given (arXiv 1711.00937, appendix A.1).

    Counts and sums are those of all processes, so the codebook stays the same on each. Only the
    `commitment` loss remains.

    Args:
        codes: number of rows K.
        dim: width C.
        decay: decay m of the averages.
        eps: smooths the counts, so that an unused code divides by no zero.
        l2_norm: compare vectors by their direction; rows stay of unit length.
        gradient: see `Codebook`, as for the arguments that follow.
        kmeans_steps: iterations of k-means on the first training batch.
        revive_below: vectors a step below which a code is replaced.
    """

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        decay: float = 0.99,
        eps: float = 1e-5,
        l2_norm: bool = False,
        gradient: str = "straight_through",
        kmeans_steps: int = 0,
        revive_below: float = 0.0,
    ) -> None:
        super().__init__(
            codes,
            dim,
            l2_norm=l2_norm,
            gradient=gradient,
            kmeans_steps=kmeans_steps,
            revive_below=revive_below,
            count_decay=decay,
        )
        self.eps = eps
        rows = torch.randn(codes, dim) / dim**0.5
        rows = F.normalize(rows, dim=-1) if l2_norm else rows
        self.codebook: Tensor
        self.count: Tensor
        self.total: Tensor
        self.register_buffer("codebook", rows)
        self.register_buffer("count", torch.ones(codes).clamp(min=HEADROOM * revive_below))
        self.register_buffer("total", rows * self.count[:, None])

    def rows(self) -> Tensor:
        """Return the codebook (K, C)."""
        return self.codebook.float()

    def counts(self) -> Tensor:
        """Return the moving average of the vectors a step of each code (K,)."""
        return self.count

    def normalise(self, z: Tensor) -> Tensor:
        """Return the vectors as they are compared with the rows."""
        return F.normalize(z, dim=-1, eps=1e-6) if self.l2_norm else z

    def search(self, z_NC: Tensor, rows_KC: Tensor) -> Tensor:
        """Return the id of the nearest row, or of the best aligned one, long (N,)."""
        return best_product(z_NC, rows_KC) if self.l2_norm else super().search(z_NC, rows_KC)

    def place(self, codes_K: Tensor, vectors: Tensor, counts: Tensor) -> None:
        """Overwrite the rows marked by `codes_K`."""
        self.codebook[codes_K] = vectors
        self.count[codes_K] = counts
        self.total[codes_K] = vectors * counts[:, None]

    @torch.no_grad()
    def learn(self, z_NC: Tensor, ids_N: Tensor) -> None:
        """Move the averages towards this step's vectors, and the rows with them."""
        sum_KC = self.average_counts(self.count, z_NC, ids_N)
        self.total.lerp_(sum_KC.to(self.total.dtype), 1.0 - self.count_decay)
        if not self.deferred:
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Set the rows to their averages; `deferred` leaves the call to the owner."""
        size, K = self.count.sum(), self.count.numel()
        smoothed_K = (self.count + self.eps) / (size + K * self.eps) * size
        rows = self.total / smoothed_K[:, None]
        self.codebook.copy_(F.normalize(rows, dim=-1, eps=1e-6) if self.l2_norm else rows)
