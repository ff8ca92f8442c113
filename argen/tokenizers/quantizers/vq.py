"""Vector quantisation with a codebook learned by gradient (arXiv 1711.00937)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.layers.precision import float32
from argen.tokenizers.quantizers.codebook import HEADROOM, Codebook


class VQ(Codebook):
    """Nearest row of a codebook trained by gradient.

    Args:
        codes: number of rows K.
        dim: width C.
        l2_norm: compare and return unit vectors (LlamaGen, arXiv 2406.06525); the stored rows need
            not be of unit length.
        entropy: also give the `entropy` loss in training: mean entropy of the assignments minus
            the entropy of their mean.
        entropy_temperature: divides the squared distances in the entropy term.
        gradient: see `Codebook`, as for the arguments that follow.
        kmeans_steps: iterations of k-means on the first training batch.
        revive_below: vectors a step below which a code is replaced.
        count_decay: decay of the counts that `revive_below` is compared with.
    """

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        l2_norm: bool = False,
        entropy: bool = False,
        entropy_temperature: float = 0.01,
        gradient: str = "straight_through",
        kmeans_steps: int = 0,
        revive_below: float = 0.0,
        count_decay: float = 0.99,
    ) -> None:
        super().__init__(
            codes,
            dim,
            l2_norm=l2_norm,
            gradient=gradient,
            kmeans_steps=kmeans_steps,
            revive_below=revive_below,
            count_decay=count_decay,
        )
        self.entropy, self.entropy_temperature = entropy, entropy_temperature
        self.codebook = nn.Embedding(codes, dim)
        nn.init.uniform_(self.codebook.weight, -1.0 / codes, 1.0 / codes)
        if l2_norm:
            self.codebook.weight.data = F.normalize(self.codebook.weight.data, dim=-1)
        self.count: Tensor | None
        start = torch.full((codes,), HEADROOM * revive_below)
        self.register_buffer("count", start if revive_below > 0 else None)

    def rows(self) -> Tensor:
        """Return the codebook (K, C) as it is compared and looked up."""
        weight = self.codebook.weight.float()
        return F.normalize(weight, dim=-1) if self.l2_norm else weight

    @float32
    def probabilities(self, z: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Return soft assignments (..., K): softmax of minus the squared distance of `z` (..., C).

        Soft targets for a generator (RQ-VAE, arXiv 2203.01941), or something to draw codes from.
        """
        distances = squared_distances(self.normalise(z), self.rows())
        return torch.softmax(-distances / temperature, dim=-1)

    def counts(self) -> Tensor | None:
        """Return the moving average of the counts (K,), kept only where codes are revived."""
        return self.count

    def place(self, codes_K: Tensor, vectors: Tensor, counts: Tensor) -> None:
        """Overwrite the rows marked by `codes_K`."""
        self.codebook.weight.data[codes_K] = vectors.to(self.codebook.weight.dtype)
        if self.count is not None:
            self.count[codes_K] = counts

    @torch.no_grad()
    def learn(self, z_NC: Tensor, ids_N: Tensor) -> None:
        """Keep the counts; the rows themselves learn by gradient."""
        if self.count is not None:
            self.average_counts(self.count, z_NC, ids_N)

    def losses(self, z: Tensor, quantized: Tensor, rows_KC: Tensor) -> dict[str, Tensor]:
        """Return `codebook`, `commitment` and, if asked for and in training, `entropy`."""
        losses = {
            "codebook": F.mse_loss(quantized, z.detach()),
            "commitment": F.mse_loss(z, quantized.detach()),
        }
        if self.entropy and self.training:
            flat = z.reshape(-1, self.dim)
            losses["entropy"] = assignment_entropy(flat, rows_KC, self.entropy_temperature)
        return losses


def squared_distances(z: Tensor, codebook_KC: Tensor) -> Tensor:
    """Return the squared distances (..., K) of vectors (..., C) from every row."""
    squares = z.square().sum(-1, keepdim=True)
    return squares - 2.0 * z @ codebook_KC.T + codebook_KC.square().sum(-1)


def assignment_entropy(z_NC: Tensor, codebook_KC: Tensor, temperature: float) -> Tensor:
    """Return mean entropy of soft assignments minus the entropy of their mean, in nats.

    The small constants are those of the published losses (MaskGIT, arXiv 2202.04200).
    """
    logits = -squared_distances(z_NC, codebook_KC) / temperature
    probs = torch.softmax(logits, dim=-1)
    sample = -(probs * torch.log_softmax(logits + 1e-5, dim=-1)).sum(-1).mean()
    mean = probs.mean(0)
    return sample + (mean * torch.log(mean + 1e-5)).sum()
