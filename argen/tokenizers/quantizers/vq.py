"""Vector quantisation with a learned codebook (arXiv 1711.00937)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.tokenizers.quantizers.base import Quantized, Quantizer, nearest_code, straight_through


class VQ(Quantizer):
    """Nearest row of a codebook trained by gradient.

    Args:
        codes: number of rows K.
        dim: width C.
        l2_norm: compare and return unit vectors (LlamaGen, arXiv 2406.06525); the stored rows need
            not be of unit length.
        entropy_temperature: divides the squared distances in the entropy term.
        entropy: also give the `entropy` loss: mean entropy of the assignments minus the entropy of
            their mean.
    """

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        l2_norm: bool = False,
        entropy: bool = False,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        self.dim, self.vocab_sizes = dim, (codes,)
        self.l2_norm, self.entropy, self.entropy_temperature = l2_norm, entropy, entropy_temperature
        self.codebook = nn.Embedding(codes, dim)
        nn.init.uniform_(self.codebook.weight, -1.0 / codes, 1.0 / codes)
        if l2_norm:
            self.codebook.weight.data = F.normalize(self.codebook.weight.data, dim=-1)

    def rows(self) -> Tensor:
        """Return the codebook (K, C) as it is compared and looked up."""
        weight = self.codebook.weight.float()
        return F.normalize(weight, dim=-1) if self.l2_norm else weight

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise `z` (..., C); losses `codebook`, `commitment` and, if asked for, `entropy`."""
        if self.l2_norm:
            z = F.normalize(z, dim=-1)
        rows, flat = self.rows(), z.reshape(-1, self.dim)
        ids = nearest_code(flat, rows).view(z.shape[:-1])
        quantized = F.embedding(ids, rows)
        losses = {
            "codebook": F.mse_loss(quantized, z.detach()),
            "commitment": F.mse_loss(z, quantized.detach()),
        }
        if self.entropy and self.training:
            losses["entropy"] = assignment_entropy(flat, rows, self.entropy_temperature)
        return Quantized(z=straight_through(z, quantized), ids=ids, losses=losses)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., C) of ids (...)."""
        return F.embedding(ids, self.rows())


def assignment_entropy(z_NC: Tensor, codebook_KC: Tensor, temperature: float) -> Tensor:
    """Return mean entropy of soft assignments minus the entropy of their mean, in nats.

    The small constants are those of the published losses (MaskGIT, arXiv 2202.04200).
    """
    distances = (
        z_NC.square().sum(-1, keepdim=True)
        - 2.0 * z_NC @ codebook_KC.T
        + codebook_KC.square().sum(-1)
    )
    logits = -distances / temperature
    probs = torch.softmax(logits, dim=-1)
    sample = -(probs * torch.log_softmax(logits + 1e-5, dim=-1)).sum(-1).mean()
    mean = probs.mean(0)
    return sample + (mean * torch.log(mean + 1e-5)).sum()
