"""The quantiser of LlamaGen's VQ-16 as it is trained (FoundationVision/LlamaGen, MIT), anew.

Where argen differs: all distances are held at once and kept for the entropy loss, which is computed
and differentiated even where its weight is 0, as in the released recipe; a buffer of the last
65,536 codes moves along every step, and their number is counted.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

REMEMBERED = 65536  # codes whose usage is counted
TEMPERATURE = 0.01


class CodebookLosses(NamedTuple):
    """Weighted losses, and the share of the codebook among the last codes."""

    codebook: Tensor
    commitment: Tensor
    entropy: Tensor
    usage: float


class Quantizer(nn.Module):
    """Nearest of K unit rows of width C; in training mode only, as its losses are always made."""

    codebook_used: Tensor

    def __init__(self, codes: int, dim: int, *, commitment: float, entropy: float) -> None:
        super().__init__()
        self.commitment, self.entropy = commitment, entropy
        self.embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)
        self.embedding.weight.data = F.normalize(self.embedding.weight.data, dim=-1)
        self.register_buffer("codebook_used", torch.zeros(REMEMBERED))

    def forward(self, latent: Tensor) -> tuple[Tensor, CodebookLosses]:
        """Return codes' vectors in place of a latent map (B, C, h, w), and the losses."""
        z = torch.einsum("bchw->bhwc", latent).contiguous()
        flat_NC = z.view(-1, z.shape[-1])
        # Both forms are normalised, each on its own.
        z, flat_NC = F.normalize(z, dim=-1), F.normalize(flat_NC, dim=-1)
        rows_KC = F.normalize(self.embedding.weight, dim=-1)
        products_NK = torch.einsum("nc,ck->nk", flat_NC, torch.einsum("kc->ck", rows_KC))
        squares_NK = torch.sum(flat_NC**2, dim=1, keepdim=True) + torch.sum(rows_KC**2, dim=1)
        distances_NK = squares_NK - 2 * products_NK
        ids_N = torch.argmin(distances_NK, dim=1)
        quantized = rows_KC[ids_N].view(z.shape)
        losses = CodebookLosses(
            codebook=torch.mean((quantized - z.detach()) ** 2),
            commitment=self.commitment * torch.mean((quantized.detach() - z) ** 2),
            entropy=self.entropy * entropy_loss(-distances_NK),
            usage=self.remember(ids_N),
        )
        passed = z + (quantized - z).detach()
        return torch.einsum("bhwc->bchw", passed), losses

    def remember(self, ids_N: Tensor) -> float:
        """Push codes into the buffer and return the share of the codebook that it holds."""
        n = len(ids_N)
        self.codebook_used[:-n] = self.codebook_used[n:].clone()
        self.codebook_used[-n:] = ids_N
        return len(torch.unique(self.codebook_used)) / self.embedding.num_embeddings


def entropy_loss(affinity_NK: Tensor) -> Tensor:
    """Return the mean entropy of soft assignments minus the entropy of their mean."""
    affinity_NK /= TEMPERATURE
    shares_NK = F.softmax(affinity_NK, dim=-1)
    logs_NK = F.log_softmax(affinity_NK + 1e-5, dim=-1)
    mean_K = torch.mean(shares_NK, dim=0)
    entropy_of_mean = -torch.sum(mean_K * torch.log(mean_K + 1e-5))
    mean_entropy = -torch.mean(torch.sum(shares_NK * logs_NK, dim=-1))
    return mean_entropy - entropy_of_mean
