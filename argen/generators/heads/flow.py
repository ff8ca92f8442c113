"""The flow head: codes of a whole entity by following a velocity field (xAR, arXiv 2502.20388).

Between codes at time 0 and noise at time 1 points move on straight lines, and the network learns
their velocity (arXiv 2209.03003, 2210.02747). Shapes: R rows (samples, or twice as many under
guidance), n positions, C code width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from argen.errors import UserError
from argen.generators.heads.base import Filter, Head
from argen.generators.heads.diffusion import noise_temperature
from argen.generators.heads.guidance import GuidanceStep, guide
from argen.layers.noise import Noise

SAMPLERS = ("euler_maruyama", "euler")


class Velocity(ABC):
    """The velocity field of one entity given everything before it: the outputs of a flow model.

    Attributes:
        shape: (R, n, C).
        device: where it is evaluated.
        positions: long (n,), what the noise of this entity is keyed by; the decoder's positions
            when None.
        is_context: whether the entity holds no codes of its own, only context for the next one.
    """

    shape: tuple[int, int, int]
    device: torch.device
    positions: Tensor | None = None
    is_context: bool = False

    @abstractmethod
    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Return the velocities (R, n, C) at points `x` (R, n, C) and time `t` in [0, 1]."""

    def after(self, context_BnC: Tensor) -> Velocity:
        """Fix a context entity as sampled; returns the field of the entity behind it."""
        raise ValueError("What is sampled here are codes; the strategy commits them.")

    def probe(self) -> Tensor:
        """Return the velocity of the origin at time 1, (R, n, C): a field as one tensor."""
        return self(torch.zeros(self.shape, device=self.device), 1.0)


class FlowHead(Head):
    """Integrates a velocity field from noise to codes.

    Args:
        sampler: `euler_maruyama` follows the stochastic process with the same marginals and ends
            with one deterministic step; `euler` the ordinary differential equation.
        steps: evaluations of the field.
        last: time at which the last step of `euler_maruyama` begins.
        interval: (low, high) times between which guidance acts.
    """

    def __init__(
        self,
        *,
        sampler: str = "euler_maruyama",
        steps: int = 50,
        last: float = 0.04,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if sampler not in SAMPLERS:
            raise UserError(f"Unknown flow sampler {sampler!r}; use {' or '.join(SAMPLERS)}.")
        if steps < 1:
            raise UserError(f"steps={steps}: the flow sampler needs at least one step.")
        if not 0 < last < 1:
            raise UserError(f"last={last} is a time and must lie in (0, 1); xAR uses 0.04.")
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise UserError(f"interval={tuple(interval)} must be (low, high) within [0, 1].")
        self.sampler, self.steps, self.last = sampler, steps, last
        self.interval = (float(interval[0]), float(interval[1]))

    def forward(self, hidden_BnD: Tensor) -> Tensor:
        """Return velocities as they are."""
        return hidden_BnD

    def guided(self, outputs: Any, guidance: GuidanceStep | None) -> Any:
        """Return the field of all rows: guidance acts on what it gives."""
        return outputs

    def loss(
        self, outputs: Tensor, target: Tensor, *, noise: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Return the squared error (B, n) of velocities (B, n, C), a mean over C.

        Args:
            outputs: predicted velocities.
            target: codes.
            noise: the noise at the other end of their lines.
        """
        if noise is None:
            raise ValueError("The velocity depends on the noise that the points were made with.")
        return (outputs.float() - (noise.float() - target.float())).square().mean(-1)

    def sample(
        self,
        outputs: Any,
        *,
        guidance: GuidanceStep | None,
        filters: Filter,
        noise: Noise,
        positions: Tensor,
    ) -> Tensor:
        """Sample codes (B, n, C); the temperature scales the noise of the stochastic steps."""
        temperature = noise_temperature(filters)
        if self.sampler == "euler" and temperature != 1.0:
            raise UserError(
                "sampler=euler adds no noise for a temperature to scale; leave it at 1."
            )
        field: Velocity = outputs
        while field.is_context:
            field = field.after(self._integrate(field, guidance, temperature, noise, positions))
        return self._integrate(field, guidance, temperature, noise, positions)

    def _integrate(
        self,
        field: Velocity,
        guidance: GuidanceStep | None,
        temperature: float,
        noise: Noise,
        positions: Tensor,
    ) -> Tensor:
        """Follow one field; the points are float64, as small steps add up."""
        R, n, C = field.shape
        B = R if guidance is None else R // 2
        at = positions if field.positions is None else field.positions

        def normal(use: int) -> Tensor:
            return noise.normal(at, (C,), use=use).to(field.device).double()

        def drift(x: Tensor, t: float) -> Tensor:
            points = x if guidance is None else torch.cat((x, x))
            v = field(points.float(), t).double()
            if self.sampler == "euler_maruyama":
                v = v - t * score(v, points, t)
            return v if guidance is None else self._guide(v, guidance, t)

        x = normal(0).expand(B, n, C)
        if self.sampler == "euler":
            times = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64).tolist()
            for t, later in pairwise(times):
                x = x + (later - t) * drift(x, t)
            return x.float()
        times = torch.linspace(1, self.last, self.steps, dtype=torch.float64).tolist()
        for step, (t, later) in enumerate(pairwise(times)):
            fresh = normal(1 + step) * (2 * t * (t - later)) ** 0.5 * temperature
            x = x + (later - t) * drift(x, t) + fresh
        t = times[-1]
        return (x - t * drift(x, t)).float()

    def _guide(self, drift: Tensor, guidance: GuidanceStep, t: float) -> Tensor:
        """Combine conditional and null rows, in float64."""
        if not self.interval[0] <= t <= self.interval[1]:
            return drift.chunk(2)[0]
        return guide(drift, guidance, centred=False)


def score(velocity: Tensor, x: Tensor, t: float) -> Tensor:
    """Return the gradient of log p_t at `x` that a velocity implies on straight lines."""
    return (-(1 - t) * velocity - x) / (t**2 + (1 - t) * t)


def interpolate(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return the points (..., C) at times `t` (...) on the lines from codes to noise."""
    return (1 - t[..., None]) * clean + t[..., None] * noise
