"""The diffusion head: p(code | hidden vector) of each position by a small MLP (arXiv 2406.11838).

Shapes: R rows (samples, or twice as many under guidance), n positions, C code width, D width of
the hidden vectors, W width of the MLP, m repeats of each training position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError
from argen.generators.heads.base import Filter, Head
from argen.generators.heads.guidance import GuidanceStep, guide
from argen.layers.diffusion import GaussianDiffusion
from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.layers.timestep import TimestepEmbedding


def noise_temperature(filters: Filter) -> float:
    """Return the temperature of `filters`, the one of them that means something for floats.

    Raises:
        UserError: if a filter of tokens is set.
    """
    for name, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0), ("entropy_k", None)):
        if getattr(filters, name, off) != off:
            raise UserError(
                f"{name} cuts tokens of a vocabulary, and continuous codes have none; "
                f"leave it at {off}. The temperature scales the sampler's noise."
            )
    return float(getattr(filters, "temperature", 1.0))


class ModulatedBlock(nn.Module):
    """x + gate * MLP(LayerNorm(x) * (1 + scale) + shift), all three from the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map (..., W) under SiLU-activated conditions (..., W)."""
        shift, scale, gate = self.modulation(y).chunk(3, dim=-1)
        h = self.norm(x) * (1 + scale) + shift
        return x + gate * self.fc2(F.silu(self.fc1(h)))


class DiffusionMLP(nn.Module):
    """Predicts noise, and the variance where it is learned, of single codes.

    Args:
        code_dim: C.
        cond_dim: D.
        width: W.
        depth: number of blocks.
        out_dim: C, or 2C where the variance is learned.
    """

    def __init__(
        self, *, code_dim: int, cond_dim: int, width: int, depth: int, out_dim: int
    ) -> None:
        super().__init__()
        self.input = nn.Linear(code_dim, width)
        self.time = TimestepEmbedding(width)
        self.cond = nn.Linear(cond_dim, width)
        self.blocks = nn.ModuleList(ModulatedBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, out_dim)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.time.fc1.weight, std=0.02)
        nn.init.normal_(self.time.fc2.weight, std=0.02)
        silent = [block.modulation for block in self.blocks if isinstance(block, ModulatedBlock)]
        for layer in (*silent, self.modulation, self.out):
            nn.init.zeros_(layer.weight)
        for module in self.modules():
            module.no_decay = ("weight",)  # type: ignore[assignment]  # the published recipe decays nothing of the head

    def condition(self, hidden: Tensor) -> Tensor:
        """Project hidden vectors (..., D) to (..., W), once for all timesteps."""
        return self.cond(hidden.to(self.cond.weight.dtype))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Predict for codes (..., C) at timesteps (...); `cond` (..., W) is from `condition`.

        Leading axes broadcast.
        """
        x = self.input(x.to(self.input.weight.dtype))  # ... W
        y = F.silu(self.time(t) + cond)  # ... W
        for block in self.blocks:
            x = block(x, y)
        shift, scale = self.modulation(y).chunk(2, dim=-1)
        return self.out(self.norm(x) * (1 + scale) + shift).float()  # ... out


class DiffusionHead(Head):
    """Diffusion over the code of one position, conditioned on its hidden vector.

    Args:
        code_dim: width C of a code.
        cond_dim: width D of the hidden vectors.
        width: width of the MLP.
        depth: blocks of the MLP.
        sampling_steps: timesteps kept when sampling, as in `spaced_timesteps`.
        steps: timesteps of training.
        schedule: noise schedule, `cosine` or `linear`.
        variance: `learned_range`, `fixed_large` or `fixed_small`.
        sampler: `ddpm`, or `ddim` with its `eta`.
        eta: noise of the `ddim` sampler, 0 for none.
        repeats: timesteps m sampled for each position of a training batch.
        clip: largest size of a number of a code when sampling, see `GaussianDiffusion`; published
            models have none, heads after a short training run away without.
    """

    def __init__(
        self,
        *,
        code_dim: int,
        cond_dim: int,
        width: int,
        depth: int,
        sampling_steps: str | int = "100",
        steps: int = 1000,
        schedule: str = "cosine",
        variance: str = "learned_range",
        sampler: str = "ddpm",
        eta: float = 0.0,
        repeats: int = 4,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        if sampler not in ("ddpm", "ddim"):
            raise UserError(f"Unknown sampler {sampler!r} of the diffusion head; use ddpm or ddim.")
        if sampler == "ddpm" and eta:
            raise UserError(f"eta={eta} belongs to the ddim sampler; set sampler=ddim.")
        if repeats < 1:
            raise UserError(f"repeats={repeats}: each position needs at least one timestep.")
        self.code_dim, self.sampler, self.eta, self.repeats = code_dim, sampler, eta, repeats
        self.process = GaussianDiffusion(
            steps=steps, schedule=schedule, variance=variance, clip=clip
        )
        learned = variance == "learned_range"
        self.net = DiffusionMLP(
            code_dim=code_dim,
            cond_dim=cond_dim,
            width=width,
            depth=depth,
            out_dim=2 * code_dim if learned else code_dim,
        )
        self.respace(sampling_steps)

    def respace(self, sampling_steps: str | int | None) -> None:
        """Sample with other timesteps from now on; nothing is retrained."""
        whole = self.process
        self.sampling = GaussianDiffusion(
            steps=whole.steps,
            schedule=whole.schedule,
            variance=whole.variance,
            spacing=sampling_steps,
            clip=whole.clip,
        )

    def forward(self, hidden_BnD: Tensor) -> Tensor:
        """Return the hidden vectors: they are the outputs."""
        return hidden_BnD

    def guided(self, outputs: Tensor, guidance: GuidanceStep | None) -> Tensor:
        """Return the hidden vectors of all rows: guidance acts on the noise predictions."""
        return outputs

    def terms(
        self, outputs: Tensor, target: Tensor, t: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return squared error and variational term in bits, (m, B, n) each, means over C.

        Args:
            outputs: hidden vectors (B, n, D).
            target: codes (B, n, C).
            t: timesteps (m, B, n).
            noise: standard normal (m, B, n, C).
        """
        # Under autocast only the network's products are in bfloat16, as published.
        clean = target.float().expand_as(noise)  # m B n C
        x = self.process.noised(clean, t, noise)
        output = self.net(x, t, self.net.condition(outputs))
        eps, values = output[..., : self.code_dim], output[..., self.code_dim :]
        error = (noise - eps).square().mean(-1)
        if self.process.variance != "learned_range":
            return error, torch.zeros_like(error)
        return error, self.process.variational_term(clean, x, t, eps, values)

    def loss(
        self,
        outputs: Tensor,
        target: Tensor,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Return the loss (B, n), a mean over the m repeats; random where not given."""
        shape = (self.repeats, *target.shape[:2])
        if t is None:
            t = torch.randint(self.process.steps, shape, device=target.device)
        if noise is None:
            noise = torch.randn(*shape, self.code_dim, device=target.device)
        error, bound = self.terms(outputs, target, t, noise)
        return (error + bound).mean(0)

    @float32
    def sample(
        self,
        outputs: Tensor,
        *,
        guidance: GuidanceStep | None,
        filters: Filter,
        noise: Noise,
        positions: Tensor,
    ) -> Tensor:
        """Sample codes (B, n, C); the temperature scales the noise of the steps, not the start."""
        temperature = noise_temperature(filters)
        if guidance is not None and guidance.is_one:
            outputs, guidance = outputs.chunk(2)[0], None  # the null half would have no say
        rows, n, device = outputs.shape[0], outputs.shape[1], outputs.device
        B = rows if guidance is None else rows // 2
        cond = self.net.condition(outputs)  # R n W
        size, last = (self.code_dim,), len(self.sampling) - 1
        x = noise.normal(positions, size).to(device).expand(B, n, -1)  # B n C
        for step in range(last, -1, -1):
            t = torch.tensor(self.sampling.timesteps[step], device=device)
            output = self.net(x if guidance is None else torch.cat((x, x)), t, cond)
            eps = guide(output[..., : self.code_dim], guidance, centred=False)
            values = output[:B, :, self.code_dim :]
            fresh = None
            if step > 0 and (self.sampler == "ddpm" or self.eta):
                fresh = noise.normal(positions, size, use=1 + last - step).to(device)
            if self.sampler == "ddpm":
                x = self.sampling.reverse(x, eps, values, step, fresh, temperature=temperature)
            else:
                fresh = None if fresh is None else fresh * temperature
                x = self.sampling.reverse_ddim(x, eps, step, fresh, eta=self.eta)
        return x
