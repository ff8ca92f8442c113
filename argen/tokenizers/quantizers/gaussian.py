"""The Gaussian bottleneck of KL autoencoders (arXiv 1312.6114, 2112.10752): continuous codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from argen.errors import UserError
from argen.layers.collective import all_sum
from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.spec import Kind
from argen.tokenizers.quantizers.base import Quantized, Quantizer

LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclass
class Posterior:
    """A diagonal normal distribution of each latent vector.

    Attributes:
        mean: (..., C).
        log_variance: (..., C), clamped.
    """

    mean: Tensor
    log_variance: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation (..., C)."""
        return torch.exp(0.5 * self.log_variance)

    def kl(self) -> Tensor:
        """Return the divergence (...) from the standard normal in nats, summed over C."""
        spread = self.log_variance.exp() - 1.0 - self.log_variance
        return 0.5 * (self.mean.square() + spread).sum(-1)


class Gaussian(Quantizer):
    """Splits its input into mean and log variance and samples; codes are normalised samples.

    Codes are (sample - mean) / std with statistics kept here, so that a generator sees numbers of
    about unit variance and no scale factor has to travel with the model.

    Args:
        dim: width C of a latent vector.
        mean: mean of the latents, one number or one a channel.
        std: their standard deviation, likewise.
        variational: the input is 2C wide; otherwise it is the mean alone and the log variance is
            the constant 1.
        momentum: share by which each training batch moves the statistics; 0 leaves them to
            `measure` or to what was given.
    """

    kind: Kind = "continuous"

    def __init__(
        self,
        dim: int,
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        variational: bool = True,
        momentum: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise UserError(f"momentum={momentum} must lie in [0, 1]; 0 keeps the statistics.")
        if min([std] if isinstance(std, int | float) else std) <= 0:
            raise UserError(f"The std of the latents must be positive, not {std}.")
        self.dim, self.variational, self.momentum = dim, variational, momentum
        self.mean: Tensor
        self.std: Tensor
        self.batches: Tensor
        self.register_buffer("mean", _channels(mean, dim, "mean"))
        self.register_buffer("std", _channels(std, dim, "std"))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        if not bool((torch.as_tensor(std, device="cpu") > 0).all()):  # the buffer may be meta
            raise UserError(f"The std of the latents must be positive, not {std}.")

    @property
    def in_dim(self) -> int:
        """Width of the input: mean and log variance, or the mean alone."""
        return 2 * self.dim if self.variational else self.dim

    def moments(self, z: Tensor) -> Tensor:
        """Return means, then log variances not yet clamped, (..., 2C)."""
        return z if self.variational else torch.cat((z, torch.ones_like(z)), dim=-1)

    @float32
    def posterior(self, z: Tensor) -> Posterior:
        """Return the distribution of the latents of `z` (..., in_dim)."""
        mean, log_variance = self.moments(z).chunk(2, dim=-1)
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Sample latents of `z` (B, ..., in_dim); loss `kl`: nats a latent vector.

        Published recipes sum the divergence over an image, which is h w times this, and weigh it
        by 1e-6 beside a pixel loss that is summed too, 3 H W times its mean.
        """
        posterior = self.posterior(z)
        sample = posterior.mean
        if noise is not None:
            positions = torch.arange(sample[0, ..., 0].numel())
            drawn = noise.normal(positions, (self.dim,)).to(sample.device)
            sample = sample + posterior.std * drawn.expand(len(sample), -1, -1).view_as(sample)
        elif self.training:
            sample = sample + posterior.std * torch.randn_like(sample)
        if self.training and self.momentum:
            self._track(posterior)
        return Quantized(
            z=sample,
            ids=None,
            losses={"kl": posterior.kl().mean()},
            codes=self.normalise(sample),
            metrics={
                "latent_std": sample.detach().std(),
                "posterior_std": posterior.std.detach().mean(),
            },
        )

    @float32
    def normalise(self, latents: Tensor) -> Tensor:
        """Return codes (..., C) of latents (..., C)."""
        return (latents - self.mean.float()) / self.std.float()

    @float32
    def code_moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (..., C) of the codes of `z` (..., in_dim)."""
        posterior = self.posterior(z)
        return self.normalise(posterior.mean), posterior.std / self.std.float()

    @float32
    def lookup(self, ids: Tensor) -> Tensor:
        """Return latents (..., C) of codes (..., C)."""
        return ids * self.std.float() + self.mean.float()

    @torch.no_grad()
    def measure(
        self, batches: Iterable[Tensor], *, per_channel: bool = True, centre: bool = True
    ) -> None:
        """Set mean and std to those of the latents' distribution.

        Args:
            batches: inputs (..., in_dim).
            per_channel: one pair of numbers a channel, as VA-VAE; otherwise one for all.
            centre: take the mean off; without it codes are only scaled, as in MAR (with
                `per_channel` false, its factor 0.2325 is 1 / std).
        """
        total = torch.zeros(3, self.dim, dtype=torch.float64, device=self.mean.device)
        for z in batches:
            total += _sums(self.posterior(z.to(self.mean.device)))
        count, first, second = all_sum(total)
        if not bool((count > 0).all()):
            raise UserError("Latent statistics need at least one image.")
        if not per_channel:
            count, first, second = (x.mean().expand(self.dim) for x in (count, first, second))
        mean = first / count
        self.std.copy_((second / count - mean.square()).clamp(min=1e-12).sqrt())
        self.mean.copy_(mean if centre else torch.zeros_like(mean))

    @torch.no_grad()
    def _track(self, posterior: Posterior) -> None:
        count, first, second = all_sum(_sums(posterior))
        share = max(self.momentum, 1.0 / (1 + int(self.batches)))  # a plain mean at first
        mean, square = first / count, second / count
        old = self.std.double().square() + self.mean.double().square()
        self.mean.lerp_(mean.to(self.mean.dtype), share)
        variance = old.lerp(square, share) - self.mean.double().square()
        self.std.copy_(variance.clamp(min=1e-12).sqrt())
        self.batches += 1


def _channels(value: float | Sequence[float], dim: int, name: str) -> Tensor:
    values = torch.as_tensor(value, dtype=torch.float32).flatten()
    if values.numel() not in (1, dim):
        raise UserError(f"{name} has {values.numel()} numbers; give one, or one a channel ({dim}).")
    return values.expand(dim).clone()


def _sums(posterior: Posterior) -> Tensor:
    """Return count, sum and sum of expected squares (3, C) of the sampled latents, float64."""
    mean = posterior.mean.detach().double().flatten(0, -2)
    variance = posterior.log_variance.detach().double().exp().flatten(0, -2)
    count = torch.full_like(mean[0], len(mean))
    return torch.stack((count, mean.sum(0), (mean.square() + variance).sum(0)))
