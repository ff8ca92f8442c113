"""MAR's diffusion loss (LTH14/mar, MIT; its process descends from improved-diffusion, MIT).

Written anew. Where argen differs: tables there are float64 on the host and are copied to the
device at every look-up and spread to the shape of the vectors, likelihood and divergence are both
taken of every vector, the posterior is worked out three times, and all of it, the network too,
runs under autocast.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

STEPS = 1000


class DiffusionLoss(nn.Module):
    """The noise-prediction error and variational term of a small network, over masked vectors."""

    def __init__(self, *, code_dim: int, cond_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.net = Mlp(code_dim=code_dim, cond_dim=cond_dim, width=width, depth=depth)
        self.process = Process()

    def forward(
        self,
        *,
        target: Tensor,
        z: Tensor,
        mask: Tensor,
        t: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return the mean where mask (N,) is 1 of targets (N, C) under conditions (N, E)."""
        if t is None:
            t = torch.randint(0, STEPS, (len(target),), device=target.device)
        if noise is None:
            noise = torch.randn_like(target)
        losses = self.process.losses(self.net, target, t, noise, z)
        return (losses * mask).sum() / mask.sum()


class Process:
    """Cosine schedule over 1000 steps, noise predicted, variance learned between two bounds."""

    def __init__(self) -> None:
        edges = np.cos((np.arange(STEPS + 1) / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2
        self.betas = betas = np.minimum(1 - edges[1:] / edges[:-1], 0.999)
        kept = np.cumprod(1.0 - betas)
        before = np.append(1.0, kept[:-1])
        self.sqrt_kept, self.sqrt_lost = np.sqrt(kept), np.sqrt(1.0 - kept)
        self.sqrt_recip, self.sqrt_recipm1 = np.sqrt(1.0 / kept), np.sqrt(1.0 / kept - 1)
        self.variance = betas * (1.0 - before) / (1.0 - kept)
        self.log_variance = np.log(np.append(self.variance[1], self.variance[1:]))
        self.clean_share = betas * np.sqrt(before) / (1.0 - kept)
        self.noisy_share = (1.0 - before) * np.sqrt(1.0 - betas) / (1.0 - kept)
        self.numbers = list(range(STEPS))

    def losses(self, net: nn.Module, clean: Tensor, t: Tensor, noise: Tensor, z: Tensor) -> Tensor:
        """Return the losses (N,) of vectors (N, C) at steps (N,)."""
        x = at(self.sqrt_kept, t, clean) * clean + at(self.sqrt_lost, t, clean) * noise
        eps, values = torch.split(net(x, self._renumbered(t), z), clean.shape[1], dim=1)
        bound = self._bound(torch.cat((eps.detach(), values), dim=1), clean, x, t)
        self._posterior(clean, x, t)  # a target for other parametrisations, made and not read
        return ((noise - eps) ** 2).mean(dim=1) + bound

    def _bound(self, output: Tensor, clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the variational term (N,), in bits, of a network's output (N, 2C)."""
        true_mean, _, true_log = self._posterior(clean, x, t)
        mean, _, log = self._predicted(output, x, t)
        divergence = 0.5 * (
            -1.0 + log - true_log + torch.exp(true_log - log)
            + (true_mean - mean) ** 2 * torch.exp(-log)
        )  # fmt: skip
        divergence = divergence.mean(dim=1) / math.log(2.0)
        nll = -binned_log_likelihood(clean, mean, 0.5 * log).mean(dim=1) / math.log(2.0)
        return torch.where(t == 0, nll, divergence)

    def _predicted(self, output: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, variance and its log (N, C) of the reverse step."""
        self._renumbered(t)  # a finished output is passed off as a network, wrapped like one
        eps, values = torch.split(output, x.shape[1], dim=1)
        low, high = at(self.log_variance, t, x), at(np.log(self.betas), t, x)
        share = (values + 1) / 2
        log = share * high + (1 - share) * low
        variance = torch.exp(log)
        clean = at(self.sqrt_recip, t, x) * x - at(self.sqrt_recipm1, t, x) * eps
        return self._posterior(clean, x, t)[0], variance, log

    def _posterior(self, clean: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, variance and its log (N, C) of the step back to known vectors."""
        mean = at(self.clean_share, t, x) * clean + at(self.noisy_share, t, x) * x
        return mean, at(self.variance, t, x), at(self.log_variance, t, x)

    def _renumbered(self, t: Tensor) -> Tensor:
        """Return the numbers of steps before any were left out."""
        return torch.tensor(self.numbers, device=t.device, dtype=t.dtype)[t]


def at(table: np.ndarray, t: Tensor, like: Tensor) -> Tensor:
    """Return the entries at steps (N,), spread to the shape (N, C) of `like`."""
    entries = torch.from_numpy(table).to(device=t.device)[t].float()[:, None]
    return entries + torch.zeros(like.shape, device=t.device)


def binned_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return log P (N, C), in nats, of values in bins of half width 1/255, open beyond 0.999."""
    centred, inverse = x - mean, torch.exp(-log_scale)
    above = normal_cdf(inverse * (centred + 1.0 / 255.0))
    below = normal_cdf(inverse * (centred - 1.0 / 255.0))
    log_above = torch.log(above.clamp(min=1e-12))
    log_rest = torch.log((1.0 - below).clamp(min=1e-12))
    inside = torch.log((above - below).clamp(min=1e-12))
    return torch.where(x < -0.999, log_above, torch.where(x > 0.999, log_rest, inside))


def normal_cdf(x: Tensor) -> Tensor:
    """Return the tanh approximation of the normal distribution function."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


class Mlp(nn.Module):
    """Adaptively normed blocks that predict noise and variance values."""

    def __init__(self, *, code_dim: int, cond_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = nn.Linear(cond_dim, width)
        self.input_proj = nn.Linear(code_dim, width)
        self.res_blocks = nn.ModuleList(ResBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * code_dim)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Return (N, 2C) for vectors (N, C) at steps (N,) under conditions (N, E)."""
        x = self.input_proj(x)
        y = self.time_embed(t) + self.cond_embed(z)
        for block in self.res_blocks:
            x = block(x, y)
        return self.final_layer(x, y)


class TimeEmbedding(nn.Module):
    """Sinusoids of a step, whose frequencies are made on the host, through two linear maps."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.count = frequencies // 2
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed steps (...,) to (..., W)."""
        index = torch.arange(self.count, dtype=torch.float32)
        falling = torch.exp(-math.log(10000) * index / self.count).to(device=t.device)
        angles = t[..., None].float() * falling
        return self.mlp(torch.cat((torch.cos(angles), torch.sin(angles)), dim=-1))


class ResBlock(nn.Module):
    """x + gate * mlp(LayerNorm(x) (1 + scale) + shift)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map (N, W) under conditions (N, W)."""
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    """A linear map of the modulated norm."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map (N, W) to (N, out) under conditions (N, W)."""
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)
