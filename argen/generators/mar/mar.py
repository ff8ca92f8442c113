"""MAR: masked autoregression over continuous codes (arXiv 2406.11838).

A network sees the known codes behind a buffer of condition tokens; its output at an unknown
position conditions the diffusion head there.

What the network is made of:
- a masked autoencoder (`masked_autoencoder.py`) over condition buffer and codes
- a diffusion head, an MLP with adaptive norms (`heads/diffusion.py`)

Shapes: B batch, R rows (B, doubled under guidance), L positions, K known positions, M masked
ones, S = buffer length, C code width, D encoder width, E decoder width, m repeats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from argen.errors import UserError
from argen.generators.base import AnyOrderGenerator, LossOutput
from argen.generators.conditioning import Cond, Conditioner
from argen.generators.heads.diffusion import DiffusionHead
from argen.generators.mar.masked_autoencoder import MaskedAutoencoder
from argen.generators.plan import Plan
from argen.layers.init import init_embeddings
from argen.layers.noise import Noise
from argen.layers.steps import take
from argen.spec import CodeSpec

RATIO, ORDER, TIME, NOISE = 1, 2, 3, 4  # the uses of the random numbers of the loss


@dataclass
class MARNoise:
    """The random numbers of the training loss.

    Attributes:
        order_BL: a permutation of the positions for each sample; the first ones are masked.
        masked: how many are masked, the same for the whole batch.
        t_mBL: timestep of each repeat of each position.
        noise_mBLC: its standard normal noise.
    """

    order_BL: Tensor
    masked: int
    t_mBL: Tensor
    noise_mBLC: Tensor


@dataclass
class MARState:
    """Decoding state of R rows: conditions, codes, the known positions and the next plan group."""

    cond: Cond
    codes_RLC: Tensor
    known_RK: Tensor
    group: int = 0


class MAR(AnyOrderGenerator):
    """Predicts any subset of continuous codes from any other.

    Args:
        spec: continuous codes; position tables are learned for exactly these positions.
        conditioner: gives one vector, repeated over the buffer, or `buffer` condition tokens.
        dim: encoder width D.
        depth: encoder blocks.
        heads: encoder attention heads.
        decoder_dim: decoder width E; D when None.
        decoder_depth: decoder blocks; as many as in the encoder when None.
        decoder_heads: decoder attention heads; as in the encoder when None.
        mlp_ratio: hidden width of the feed-forward layers over their width.
        buffer: number S of condition positions in front of the codes.
        norm_eps: epsilon of the norms of blocks and stacks.
        mask_ratio_min: smallest share of codes masked in training.
        mask_ratio_mean: mean of the normal that the share follows, cut to [min, 1].
        mask_ratio_std: its standard deviation.
        head_width: width of the diffusion head.
        head_depth: its blocks.
        sampling_steps: its timesteps when sampling, as in `spaced_timesteps`.
        diffusion: other arguments of `DiffusionHead`.
        repeats: timesteps sampled for each masked code in training.
        dropout: dropout after attention and in the feed-forward layers.
        attention_dropout: dropout of attention weights.
        gradient_checkpointing: recompute blocks in the backward pass to save memory; the same as
            `fit.gradient_checkpointing`.
    """

    def __init__(
        self,
        *,
        spec: CodeSpec | dict[str, Any],
        conditioner: Conditioner,
        dim: int,
        depth: int,
        heads: int,
        decoder_dim: int | None = None,
        decoder_depth: int | None = None,
        decoder_heads: int | None = None,
        mlp_ratio: float = 4.0,
        buffer: int = 64,
        norm_eps: float = 1e-6,
        mask_ratio_min: float = 0.7,
        mask_ratio_mean: float = 1.0,
        mask_ratio_std: float = 0.25,
        head_width: int = 1024,
        head_depth: int = 3,
        sampling_steps: str | int = "100",
        diffusion: dict[str, Any] | None = None,
        repeats: int = 4,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.spec = CodeSpec.of(spec)
        self.require_vectors(self.spec)
        if not 0 <= mask_ratio_min < 1:
            raise UserError(f"mask_ratio_min={mask_ratio_min} must lie in [0, 1); MAR uses 0.7.")
        if buffer < 1 or conditioner.length not in (1, buffer):
            raise UserError(
                f"The conditioner gives {conditioner.length} tokens, but the buffer has {buffer} "
                f"positions; set generator.buffer={conditioner.length}."
            )
        L, C = self.spec.length, self.spec.dim
        E = dim if decoder_dim is None else decoder_dim
        self.plan = Plan(tuple((i,) for i in range(L)), any_order=True)
        self.conditioner, self.buffer = conditioner, buffer
        self.mask_ratio = (mask_ratio_min, mask_ratio_mean, mask_ratio_std)
        self.network = MaskedAutoencoder(
            code_dim=C,
            length=L,
            buffer=buffer,
            dim=dim,
            depth=depth,
            heads=heads,
            decoder_dim=E,
            decoder_depth=depth if decoder_depth is None else decoder_depth,
            decoder_heads=heads if decoder_heads is None else decoder_heads,
            mlp_ratio=mlp_ratio,
            norm_eps=norm_eps,
            dropout=dropout,
            attention_dropout=attention_dropout,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.head: DiffusionHead = DiffusionHead(
            code_dim=C,
            cond_dim=E,
            width=head_width,
            depth=head_depth,
            sampling_steps=sampling_steps,
            repeats=repeats,
            **(diffusion or {}),
        )
        init_embeddings(conditioner, 0.02)

    def loss(
        self,
        codes: Tensor,
        cond: Cond,
        *,
        noise: Noise | None = None,
        draws: MARNoise | None = None,
    ) -> LossOutput:
        """Return the diffusion loss of codes (B, L, C), a mean over the masked positions.

        Args:
            codes: unit-scale latents.
            cond: their conditions.
            noise: where the random numbers come from; torch's generator when None.
            draws: the random numbers themselves, for exact replay.
        """
        draws = self.random_masking(len(cond), noise=noise) if draws is None else draws
        masked_BM = draws.order_BL[:, : draws.masked]
        known_BK = draws.order_BL[:, draws.masked :].sort(dim=-1).values
        hidden_BLE = self.forward_mae(codes, cond, known_BK)
        repeats = len(draws.t_mBL)
        index_mBM = masked_BM.expand(repeats, -1, -1)
        index_mBMC = index_mBM[..., None].expand(-1, -1, -1, codes.shape[2])
        # Known positions would be thrown away, so they never reach the head.
        error, bound = self.head.terms(
            take(hidden_BLE, masked_BM),
            take(codes, masked_BM),
            draws.t_mBL.gather(2, index_mBM),
            draws.noise_mBLC.gather(2, index_mBMC),
        )
        loss = (error + bound).mean()
        return LossOutput(loss, {"mse": error.mean().detach(), "vb": bound.mean().detach()})

    @torch.compiler.disable  # the number of masked codes is decided on the host
    def random_masking(self, batch: int, *, noise: Noise | None = None) -> MARNoise:
        """Return masks of a training batch, with the timesteps and noise of its diffusion loss."""
        L, C, m = self.spec.length, self.spec.dim, self.head.repeats
        device = self.network.mask_token.device
        steps = self.head.process.steps
        if noise is None:
            share = float(torch.rand(()))
            rank_BL = torch.rand(batch, L, device=device)
            t_mBL = torch.randint(steps, (m, batch, L), device=device)
            noise_mBLC = torch.randn(m, batch, L, C, device=device)
        else:
            at = torch.arange(L)
            share = float(noise.uniform(at[:1], use=RATIO)[0, 0])
            rank_BL = noise.uniform(at, use=ORDER).to(device)
            uniform = noise.uniform(at, (m,), use=TIME).to(device)  # B L m
            t_mBL = (uniform * steps).long().clamp(max=steps - 1).permute(2, 0, 1)
            noise_mBLC = noise.normal(at, (m, C), use=NOISE).to(device).permute(2, 0, 1, 3)
        return MARNoise(
            order_BL=rank_BL.argsort(dim=-1),
            masked=math.ceil(L * truncated_normal(share, *self.mask_ratio)),
            t_mBL=t_mBL,
            noise_mBLC=noise_mBLC,
        )

    def forward_mae(self, codes: Tensor, cond: Cond, known_RK: Tensor) -> Tensor:
        """Return hidden vectors (R, L, E) of all positions given the codes at `known_RK`."""
        return self.network(codes, self.condition_buffer(cond), known_RK, _padding(cond))

    def condition_buffer(self, cond: Cond) -> Tensor:
        """Return the buffer (R, S, D): one vector everywhere, or the condition tokens."""
        if cond.vector_BD is not None:
            return cond.vector_BD[:, None].expand(-1, self.buffer, -1)
        if cond.tokens_BTD is None:
            raise UserError("MAR needs a condition vector or condition tokens.")
        return cond.tokens_BTD.expand(-1, self.buffer, -1)

    def score(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return hidden vectors (B, L, E) given the earlier groups of the plan, a pass a group."""
        order = [p for group in self.plan.groups for p in group]
        parts, done = [], 0
        for group in self.plan.groups:
            known = torch.tensor(sorted(order[:done]), dtype=torch.long, device=codes.device)
            hidden = self.forward_mae(codes, cond, known.expand(len(cond), -1))
            parts.append(hidden[:, list(group)])
            done += len(group)
        return torch.cat(parts, dim=1)[:, torch.tensor(order, device=codes.device).argsort()]

    def start(self, cond: Cond, *, longest_draft: int = 0) -> MARState:
        """Return a state in which nothing is known."""
        self.refuse_drafts(longest_draft > 0, use="decoder=masked")
        R, device = len(cond), self.network.mask_token.device
        codes = torch.zeros(R, self.spec.length, self.spec.dim, device=device)
        none = torch.zeros(R, 0, dtype=torch.long, device=device)
        return MARState(cond, codes, none)

    def predict(
        self, state: MARState, draft: Tensor | None = None, *, positions: Tensor | None = None
    ) -> Tensor:
        """Return hidden vectors (R, n, E) at `positions`, or of the plan's next group."""
        self.refuse_drafts(draft is not None, use="decoder=masked")
        hidden = self.forward_mae(state.codes_RLC, state.cond, state.known_RK)
        return take(hidden, self._positions(state, positions))

    def commit(
        self,
        state: MARState,
        codes: Tensor,
        counts: Tensor | None = None,
        *,
        positions: Tensor | None = None,
    ) -> None:
        """Fix codes (R, n, C) at `positions`, or of the plan's next group."""
        self.refuse_drafts(counts is not None, use="decoder=masked")
        index = self._positions(state, positions)
        state.group += positions is None
        state.codes_RLC = state.codes_RLC.scatter(
            1, index[..., None].expand_as(codes), codes.to(state.codes_RLC.dtype)
        )
        state.known_RK = torch.cat((state.known_RK, index), dim=1).sort(dim=-1).values

    def _positions(self, state: MARState, positions: Tensor | None) -> Tensor:
        """Return positions (R, n)."""
        if positions is None:
            positions = torch.tensor(self.plan.groups[state.group])
        return positions.to(state.known_RK.device).expand(len(state.cond), -1)


def _padding(cond: Cond) -> Tensor | None:
    """Return which condition tokens are valid, where they fill the buffer."""
    return cond.mask_BT if cond.vector_BD is None else None


def truncated_normal(
    uniform: float, low: float, mean: float, std: float, *, high: float = 1.0
) -> float:
    """Return the quantile `uniform` of a normal distribution cut to [low, high]."""
    edges = torch.tensor([(low - mean) / std, (high - mean) / std], dtype=torch.float64)
    a, b = torch.special.ndtr(edges)
    value = mean + std * float(torch.special.ndtri(a + uniform * (b - a)))
    return min(high, max(low, value))
