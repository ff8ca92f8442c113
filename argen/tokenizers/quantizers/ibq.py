"""Index backpropagation quantisation (IBQ, arXiv 2412.02692): every code learns at every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from argen.layers.collective import all_mean
from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.tokenizers.quantizers.base import Quantized, Quantizer, best_product
from argen.tokenizers.quantizers.bit_entropy import entropy


class IBQ(Quantizer):
    """The row with the largest inner product; gradients pass through the softmax over all rows.

    The length of a row matters: long rows win more often, so weights must not be normalised. The
    probabilities of N vectors over K rows are computed in chunks, and again in backward, so that
    memory is bounded whatever N and K are.

    Losses: `codebook` mean (row - sg z)^2, `commitment` mean (z - sg row)^2, `index` mean
    (zq - z)^2 with gradients on both sides, zq through the softmax; with `entropy` also
    `sample_entropy` and `batch_entropy` (weigh it negatively), the latter over all processes.

    Args:
        codes: number of rows K.
        dim: width C.
        entropy: give the entropy losses.
        entropy_temperature: divides the inner products in the entropies.
        max_elements: numbers of a chunk of the N x K probabilities.
    """

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        entropy: bool = True,
        entropy_temperature: float = 0.01,
        max_elements: int = 1 << 25,
    ) -> None:
        super().__init__()
        self.dim, self.vocab_sizes = dim, (codes,)
        self.entropy, self.entropy_temperature = entropy, entropy_temperature
        self.max_elements = max_elements
        self.codebook = nn.Embedding(codes, dim)

    def rows(self) -> Tensor:
        """Return the codebook (K, C)."""
        return self.codebook.weight.float()

    def _part(self, z_NC: Tensor, rows_KC: Tensor) -> tuple[Tensor, ...]:
        """Return ids (N,), soft rows (N, C), summed entropies and summed assignments (K,)."""
        logits_NK = z_NC @ rows_KC.T
        # The one-hot of the best row equals itself in value and the softmax in gradient; against
        # rows held fixed, that gradient is the one of the soft mixture of rows.
        soft_NC = torch.softmax(logits_NK, dim=-1) @ rows_KC.detach()
        ids_N = logits_NK.detach().argmax(-1)
        if not self.entropy:
            return ids_N, soft_NC, z_NC.new_zeros(()), z_NC.new_zeros(())
        log_NK = torch.log_softmax(logits_NK / self.entropy_temperature, dim=-1)
        probs_NK = log_NK.exp()
        return ids_N, soft_NC, -(probs_NK * log_NK).sum(), probs_NK.sum(0)

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise `z` (..., C)."""
        rows, flat = self.rows(), z.reshape(-1, self.dim)
        chunks = flat.split(max(1, self.max_elements // rows.shape[0]))
        again = len(chunks) > 1 and torch.is_grad_enabled()
        found: list[tuple[Tensor, Tensor]] = []
        sample, total = flat.new_zeros(()), flat.new_zeros(rows.shape[0] if self.entropy else ())
        for chunk in chunks:
            part = checkpoint(self._part, chunk, rows, use_reentrant=False) if again else None
            ids_N, soft_NC, entropy_sum, sum_K = part or self._part(chunk, rows)
            found.append((ids_N, soft_NC))
            sample, total = sample + entropy_sum, total + sum_K
        ids, soft = (torch.cat(column) for column in zip(*found))
        hard = F.embedding(ids, rows)  # N C
        passed = hard + (soft - soft.detach())
        losses = {
            "index": F.mse_loss(passed, flat),
            "codebook": F.mse_loss(hard, flat.detach()),
            "commitment": F.mse_loss(flat, hard.detach()),
        }
        if self.entropy:
            losses["sample_entropy"] = sample / flat.shape[0]
            losses["batch_entropy"] = entropy(all_mean(total, flat.shape[0]))
        return Quantized(z=passed.view(z.shape), ids=ids.view(z.shape[:-1]), losses=losses)

    @float32
    def encode(self, z: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Return the ids (...) of vectors (..., C)."""
        return best_product(z.reshape(-1, self.dim), self.rows()).view(z.shape[:-1])

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., C) of ids (...)."""
        return F.embedding(ids, self.rows())
