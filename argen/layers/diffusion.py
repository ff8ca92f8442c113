"""Gaussian diffusion over discrete timesteps, with a learned variance and respaced sampling.

Denoising diffusion (arXiv 2006.11239) as improved in arXiv 2102.09672: the network predicts the
noise and, where the variance is learned, how far the log variance of a reverse step lies between
its two bounds. No network here: tables, the forward and the reverse step, and the two loss terms.
Shapes: (..., C) for vectors, (...) for timesteps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from argen.errors import UserError

VARIANCES = ("learned_range", "fixed_large", "fixed_small")


def cosine_betas(steps: int, *, largest: float = 0.999) -> Tensor:
    """Return betas (steps,) whose cumulative alphas follow a squared cosine, float64."""
    edges = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps
    kept = torch.cos((edges + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - kept[1:] / kept[:-1]).clamp(max=largest)


def linear_betas(steps: int) -> Tensor:
    """Return betas (steps,) that rise linearly, 1e-4 to 0.02 at 1000 steps, float64."""
    scale = 1000 / steps
    return torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64, device="cpu")


def spaced_timesteps(steps: int, spacing: str | int | None) -> list[int]:
    """Return the timesteps, ascending, that a shortened process keeps of 0 .. steps - 1.

    Args:
        steps: timesteps of the whole process.
        spacing: "100" for 100 spread evenly from first to last; "10,15,20" for so many in each of
            as many equal sections; "ddim50" for 50 at an integer stride from 0; empty or None for
            all.
    """
    text = "" if spacing is None else str(spacing).strip()
    if not text:
        return list(range(steps))
    try:
        if text.startswith("ddim"):
            wanted = int(text[4:])
            for stride in range(1, steps):
                if len(range(0, steps, stride)) == wanted:
                    return list(range(0, steps, stride))
            raise UserError(f"No integer stride keeps {wanted} of {steps} timesteps; use '100'.")
        counts = [int(part) for part in text.split(",")]
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"Cannot read timestep spacing {spacing!r}; write '100', '10,15,20' or 'ddim50'."
        ) from error
    base, extra = divmod(steps, len(counts))
    kept: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        size = base + (i < extra)
        if not 1 <= count <= size:
            raise UserError(
                f"Timestep spacing {spacing!r} asks for {count} of the {size} timesteps in section "
                f"{i + 1}; use 1 to {size}."
            )
        at, hop = 0.0, (size - 1) / (count - 1) if count > 1 else 1.0
        for _ in range(count):  # the sum, not a product: rounding decides between neighbours
            kept.append(start + round(at))
            at += hop
        start += size
    return kept


class GaussianDiffusion:
    """A noise schedule, whole or respaced, with the steps that lead along it.

    Steps are counted 0 .. len - 1 in the respaced process; `timesteps` are the numbers the network
    was trained with.

    Args:
        steps: timesteps of the whole process.
        schedule: `cosine` or `linear`.
        spacing: see `spaced_timesteps`.
        variance: `learned_range`, `fixed_large` (beta) or `fixed_small` (posterior variance).
        clip: when drawing, cut the predicted clean vectors to [-clip, clip]; None for no limit.
            At the noisiest steps a small error of the noise is a huge one of the clean vector.
    """

    def __init__(
        self,
        *,
        steps: int = 1000,
        schedule: str = "cosine",
        spacing: str | int | None = None,
        variance: str = "learned_range",
        clip: float | None = None,
    ) -> None:
        if clip is not None and clip <= 0:
            raise UserError(f"clip={clip} must be positive; leave it out for no limit.")
        if schedule not in ("cosine", "linear"):
            raise UserError(f"Unknown noise schedule {schedule!r}; use cosine or linear.")
        if variance not in VARIANCES:
            raise UserError(f"Unknown variance {variance!r}; use one of {', '.join(VARIANCES)}.")
        self.steps, self.schedule, self.variance, self.clip = steps, schedule, variance, clip
        betas = cosine_betas(steps) if schedule == "cosine" else linear_betas(steps)
        self.timesteps = spaced_timesteps(steps, spacing)
        if len(self.timesteps) < steps:
            kept = (1 - betas).cumprod(0)[self.timesteps]
            betas = 1 - kept / torch.cat((kept.new_ones(1), kept[:-1]))
        self.tables = {name: table.float() for name, table in _tables(betas).items()}
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.timesteps)

    def _at(self, name: str, step: int | Tensor) -> float | Tensor:
        """Return a table's entry: a number for one step, (..., 1) for a tensor of steps."""
        if isinstance(step, int):
            return float(self.tables[name][step])
        tables = self._on_device.get(step.device)
        if tables is None:
            tables = {k: v.to(step.device) for k, v in self.tables.items()}
            self._on_device[step.device] = tables
        return tables[name][step][..., None]

    def noised(self, clean: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Return the diffused vectors of q(x_t | x_0)."""
        return (
            self._at("sqrt_alphas_cumprod", step) * clean
            + self._at("sqrt_one_minus_alphas_cumprod", step) * noise
        )

    def clean(self, x: Tensor, noise: Tensor, step: int | Tensor) -> Tensor:
        """Return the clean vectors that a noise prediction stands for, without a limit."""
        return (
            self._at("sqrt_recip_alphas_cumprod", step) * x
            - self._at("sqrt_recipm1_alphas_cumprod", step) * noise
        )

    def _limited(self, x: Tensor, eps: Tensor, step: int) -> Tensor:
        clean = self.clean(x, eps, step)
        return clean if self.clip is None else clean.clamp(-self.clip, self.clip)

    def posterior_mean(self, clean: Tensor, x: Tensor, step: int | Tensor) -> Tensor:
        """Return the mean of q(x_{t-1} | x_t, x_0)."""
        return (
            self._at("posterior_mean_coef1", step) * clean
            + self._at("posterior_mean_coef2", step) * x
        )

    def log_variance(self, values: Tensor | None, step: int | Tensor) -> float | Tensor:
        """Return the log variance of a reverse step; `values` in [-1, 1] where it is learned."""
        if self.variance == "fixed_small":
            return self._at("posterior_log_variance_clipped", step)
        if self.variance == "fixed_large":
            return self._at("fixed_large_log_variance", step)
        assert values is not None
        share = (values + 1) / 2
        return share * self._at("log_betas", step) + (1 - share) * self._at(
            "posterior_log_variance_clipped", step
        )

    def reverse(
        self,
        x: Tensor,
        eps: Tensor,
        values: Tensor | None,
        step: int,
        noise: Tensor | None,
        *,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw x_{t-1} given x_t; the last step (0) adds no noise.

        Args:
            x: (..., C).
            eps: predicted noise.
            values: variance values of the network, None where the variance is fixed.
            step: number of the step.
            noise: standard normal, not read at step 0.
            temperature: scales the noise.
        """
        mean = self.posterior_mean(self._limited(x, eps, step), x, step)
        if step == 0 or noise is None:
            return mean
        spread = torch.as_tensor(self.log_variance(values, step), device=x.device).mul(0.5).exp()
        return mean + spread * noise * temperature

    def reverse_ddim(
        self, x: Tensor, eps: Tensor, step: int, noise: Tensor | None, *, eta: float = 0.0
    ) -> Tensor:
        """Take a step of the implicit sampler (arXiv 2010.02502); `eta` 0 is deterministic."""
        now, before = self.tables["alphas_cumprod"][step], self.tables["alphas_cumprod_prev"][step]
        sigma = eta * ((1 - before) / (1 - now)).sqrt() * (1 - now / before).sqrt()
        direction = (1 - before - sigma**2).clamp(min=0).sqrt()
        clean = self._limited(x, eps, step)
        if self.clip is not None:  # the noise that belongs to the limited vector
            eps = (x - float(now.sqrt()) * clean) / float((1 - now).sqrt())
        y = float(before.sqrt()) * clean + float(direction) * eps
        return y if step == 0 or noise is None or eta == 0.0 else y + float(sigma) * noise

    def variational_term(
        self, clean: Tensor, x: Tensor, step: Tensor, eps: Tensor, values: Tensor
    ) -> Tensor:
        """Return the term of the variational bound (...), in bits, mean over C.

        It trains the variance only: the noise prediction is detached. At t > 0 the divergence of
        the reverse step from the posterior, at t = 0 the log-likelihood of `clean` in bins of
        1/127.5.
        """
        model_mean = self.posterior_mean(self.clean(x, eps.detach(), step), x, step)
        model_log = torch.as_tensor(self.log_variance(values, step))
        true_mean = self.posterior_mean(clean, x, step)
        true_log = torch.as_tensor(self._at("posterior_log_variance_clipped", step))
        divergence = 0.5 * (
            model_log
            - true_log
            - 1.0
            + torch.exp(true_log - model_log)
            + (true_mean - model_mean).square() * torch.exp(-model_log)
        )
        nll = -binned_log_likelihood(clean, model_mean, 0.5 * model_log)
        nats = torch.where(step == 0, nll.mean(-1), divergence.mean(-1))
        return nats / math.log(2)


def binned_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return log P, in nats, of values in [-1, 1] cut into bins of half width 1/255.

    The outermost bins are open; the normal distribution function is the tanh approximation that
    published models were trained with.
    """
    centred, inverse = x - mean, torch.exp(-log_scale)
    above = _normal_cdf(inverse * (centred + 1.0 / 255.0))
    below = _normal_cdf(inverse * (centred - 1.0 / 255.0))
    log_above = above.clamp(min=1e-12).log()
    log_rest = (1.0 - below).clamp(min=1e-12).log()
    log_between = (above - below).clamp(min=1e-12).log()
    return torch.where(x < -0.999, log_above, torch.where(x > 0.999, log_rest, log_between))


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _tables(betas: Tensor) -> dict[str, Tensor]:
    """Return everything that is looked up by step, float64."""
    alphas = 1 - betas
    kept = alphas.cumprod(0)
    before = torch.cat((kept.new_ones(1), kept[:-1]))
    variance = betas * (1 - before) / (1 - kept)
    # The first posterior variance is 0, which has no logarithm; a single step has no second.
    second = variance[1:2] if len(variance) > 1 else betas
    clipped = torch.cat((second, variance[1:]))
    return {
        "betas": betas,
        "log_betas": betas.log(),
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": kept.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - kept).sqrt(),
        "sqrt_recip_alphas_cumprod": (1 / kept).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / kept - 1).sqrt(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - kept),
        "posterior_mean_coef2": (1 - before) * alphas.sqrt() / (1 - kept),
        "posterior_log_variance_clipped": clipped.log(),
        "fixed_large_log_variance": torch.cat((second, betas[1:])).log(),
    }
