"""No quantisation: a diagonal Gaussian a position, as in variational autoencoders (1312.6114)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.spec import Kind
from argen.tokenizers.quantizers.base import Quantized, Quantizer

LOG_VARIANCE = (-30.0, 20.0)  # where log variances are clamped, as in latent diffusion models


class Gaussian(Quantizer):
    """Continuous codes: a sample, or the mean, of the distribution that the encoder gives.

    Takes means and log variances side by side, (..., 2C), and gives vectors (..., C). Codes are
    (vector - mean) / std, with statistics that are stored with the weights, so that a generator
    sees numbers of unit scale.

    Args:
        dim: width C.
        mean: mean of the vectors over the data, one number or C.
        std: their standard deviation, one number or C.
    """

    kind: Kind = "continuous"

    def __init__(
        self,
        dim: int,
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.mean: Tensor
        self.std: Tensor
        for name, value in (("mean", mean), ("std", std)):
            row = torch.as_tensor(value, dtype=torch.float32).expand(dim).clone()
            self.register_buffer(name, row)

    @property
    def in_dim(self) -> int:
        """Width 2C of the vectors it takes."""
        return 2 * self.dim

    @float32
    def moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and clamped log variance, (..., C) each, of `z` (..., 2C)."""
        mean, log_variance = z.chunk(2, dim=-1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Sample vectors (B, ..., C); loss `kl`, in nats a picture, against a standard normal.

        Args:
            z: means and log variances (B, ..., 2C).
            noise: standard normal draws, keyed by position; without it, fresh ones in training
                and none in evaluation, which gives the mean.
        """
        mean, log_variance = self.moments(z)
        sample = mean
        if noise is not None:
            positions = torch.arange(mean[0, ..., 0].numel(), device=mean.device)
            draws = noise.normal(positions, (self.dim,)).to(mean.device).view(mean.shape)
            sample = mean + torch.exp(0.5 * log_variance) * draws
        elif self.training:
            sample = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        losses = {"kl": kl_divergence(mean, log_variance).flatten(1).sum(1).mean()}
        return Quantized(z=sample, ids=None, losses=losses, codes=(sample - self.mean) / self.std)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., C) of codes (..., C)."""
        return ids * self.std + self.mean

    @torch.no_grad()
    def set_statistics(self, mean_C: Tensor, std_C: Tensor) -> None:
        """Store measured statistics of the vectors; the codes of all data change with them."""
        self.mean.copy_(mean_C)
        self.std.copy_(std_C)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the divergence of each number from a standard normal, in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
