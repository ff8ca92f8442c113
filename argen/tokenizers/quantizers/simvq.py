"""SimVQ (arXiv 2411.02038): a frozen random codebook seen through one learned linear map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.tokenizers.quantizers.base import Quantized, Quantizer, gradient_pass, nearest_code


class SimVQ(Quantizer):
    """Nearest row of W F: F is never trained, and W moves all rows at once, so none dies alone.

    Losses: `codebook` and `commitment`; the published weights are 1 and 0.25.

    Args:
        codes: number of rows K.
        dim: width C.
        base_dim: width of the frozen rows; C when None.
        gradient: `straight_through` or `rotation`.
    """

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        base_dim: int | None = None,
        gradient: str = "straight_through",
    ) -> None:
        super().__init__()
        base_dim = dim if base_dim is None else base_dim
        self.dim, self.vocab_sizes = dim, (codes,)
        self.pass_gradient = gradient_pass(gradient)
        self.base: Tensor
        self.register_buffer("base", torch.randn(codes, base_dim) / base_dim**0.5)
        self.transform = nn.Linear(base_dim, dim, bias=False)

    def rows(self) -> Tensor:
        """Return the codebook (K, C)."""
        return self.base.float() @ self.transform.weight.float().T

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise `z` (..., C)."""
        rows = self.rows()
        ids = nearest_code(z.reshape(-1, self.dim), rows).view(z.shape[:-1])
        quantized = F.embedding(ids, rows)
        losses = {
            "codebook": F.mse_loss(quantized, z.detach()),
            "commitment": F.mse_loss(z, quantized.detach()),
        }
        return Quantized(z=self.pass_gradient(z, quantized), ids=ids, losses=losses)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., C) of ids (...), without computing the other rows."""
        return F.embedding(ids, self.base.float()) @ self.transform.weight.float().T
