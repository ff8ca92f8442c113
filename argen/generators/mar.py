"""MAR: masked autoregression over continuous codes (arXiv 2406.11838).

A bidirectional encoder sees the known codes behind a buffer of condition tokens, a decoder fills
the unknown positions with one mask token, and its output at a position conditions the diffusion
head there.

Letters: B batch, R rows (B, doubled under guidance), L positions, K known positions, M masked
ones, S = buffer length, C code width, D encoder width, E decoder width, m repeats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from argen.errors import IncompatibleError, UserError
from argen.generators.any_order import AnyOrderGenerator
from argen.generators.base import LossOutput
from argen.generators.conditioning import Cond, Conditioner
from argen.generators.diffusion_head import DiffusionHead
from argen.generators.plan import Plan
from argen.layers.noise import Noise
from argen.layers.transformer import Block
from argen.spec import CodeSpec

RATIO, ORDER, TIME, NOISE = 1, 2, 3, 4  # the uses of a loss's own draws


@dataclass
class MARDraws:
    """What the training loss draws.

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
        mask_ratio_mean: mean of the normal that the share is drawn from, cut to [min, 1].
        mask_ratio_std: its standard deviation.
        head_width: width of the diffusion head.
        head_depth: its blocks.
        sampling_steps: its timesteps when sampling, as in `spaced_timesteps`.
        diffusion: other arguments of `DiffusionHead`.
        repeats: timesteps drawn for each masked code in training.
        dropout: dropout after attention and in the feed-forward layers.
        attention_dropout: dropout of attention weights.
        gradient_checkpointing: recompute blocks in the backward pass to save memory.
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
        self.require(self.spec, {"continuous": "vectors"})
        if len({segment.dim for segment in self.spec.segments}) > 1:
            raise IncompatibleError(
                f"MAR needs one code width, but {self.spec.describe()} has several. Choose a "
                "tokenizer whose segments are equally wide."
            )
        if not 0 <= mask_ratio_min < 1:
            raise UserError(f"mask_ratio_min={mask_ratio_min} must lie in [0, 1); MAR uses 0.7.")
        if buffer < 1:
            raise UserError(f"buffer={buffer}: the condition needs at least one position.")
        if conditioner.length not in (1, buffer):
            raise UserError(
                f"The conditioner gives {conditioner.length} tokens, but the buffer has {buffer} "
                f"positions; set generator.buffer={conditioner.length}."
            )
        L, C = self.spec.length, self.spec.dim
        E = dim if decoder_dim is None else decoder_dim
        self.plan = Plan(tuple((i,) for i in range(L)), any_order=True)
        self.conditioner, self.buffer = conditioner, buffer
        self.mask_ratio = (mask_ratio_min, mask_ratio_mean, mask_ratio_std)
        self.gradient_checkpointing = gradient_checkpointing
        self.input = nn.Linear(C, dim)
        self.input_norm = nn.LayerNorm(dim, eps=1e-6)
        self.encoder_positions = nn.Parameter(torch.empty(1, buffer + L, dim))
        self.decoder_embed = nn.Linear(dim, E)
        self.mask_token = nn.Parameter(torch.empty(1, 1, E))
        self.decoder_positions = nn.Parameter(torch.empty(1, buffer + L, E))
        self.head_positions = nn.Parameter(torch.empty(1, L, E))

        def stack(width: int, count: int, heads: int) -> nn.ModuleList:
            return nn.ModuleList(
                Block(
                    width,
                    heads,
                    ffn_hidden=int(width * mlp_ratio),
                    norm="layer",
                    norm_eps=norm_eps,
                    ffn="gelu",
                    bias=True,
                    attention_dropout=attention_dropout,
                    residual_dropout=dropout,
                    ffn_dropout=dropout,
                    ffn_inner_dropout=dropout,
                )
                for _ in range(count)
            )

        self.encoder_blocks = stack(dim, depth, heads)
        self.encoder_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.decoder_blocks = stack(
            E,
            depth if decoder_depth is None else decoder_depth,
            heads if decoder_heads is None else decoder_heads,
        )
        self.decoder_norm = nn.LayerNorm(E, eps=norm_eps)
        self._init_weights()
        self.head: DiffusionHead = DiffusionHead(
            code_dim=C,
            cond_dim=E,
            width=head_width,
            depth=head_depth,
            sampling_steps=sampling_steps,
            repeats=repeats,
            **(diffusion or {}),
        )

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for table in (self.encoder_positions, self.decoder_positions, self.head_positions):
            nn.init.normal_(table, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def loss(
        self,
        codes: Tensor,
        cond: Cond,
        *,
        noise: Noise | None = None,
        draws: MARDraws | None = None,
    ) -> LossOutput:
        """Return the diffusion loss of codes (B, L, C), a mean over the masked positions.

        Args:
            codes: unit-scale latents.
            cond: their conditions.
            noise: where the draws come from; torch's generator when None.
            draws: the draws themselves, for exact replay.
        """
        draws = self.draw(len(cond), noise=noise) if draws is None else draws
        masked_BM = draws.order_BL[:, : draws.masked]
        known_BK = draws.order_BL[:, draws.masked :].sort(dim=-1).values
        hidden_BLE = self.hidden(codes, cond, known_BK)
        repeats = len(draws.t_mBL)
        index_mBM = masked_BM.expand(repeats, -1, -1)
        width = draws.noise_mBLC.shape[-1]
        # Known positions would be thrown away, so they never reach the head.
        error, bound = self.head.terms(
            take(hidden_BLE, masked_BM),
            take(codes, masked_BM),
            draws.t_mBL.gather(2, index_mBM),
            draws.noise_mBLC.gather(2, index_mBM[..., None].expand(-1, -1, -1, width)),
        )
        loss = (error + bound).mean()
        return LossOutput(loss, {"mse": error.mean().detach(), "vb": bound.mean().detach()})

    def draw(self, batch: int, *, noise: Noise | None = None) -> MARDraws:
        """Draw masks, timesteps and noise for a training batch."""
        L, C, m, device = (
            self.spec.length,
            self.spec.dim,
            self.head.repeats,
            self.input.weight.device,
        )
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
        return MARDraws(
            order_BL=rank_BL.argsort(dim=-1),
            masked=math.ceil(L * truncated_normal(share, *self.mask_ratio)),
            t_mBL=t_mBL,
            noise_mBLC=noise_mBLC,
        )

    def hidden(self, codes: Tensor, cond: Cond, known_RK: Tensor) -> Tensor:
        """Return decoder outputs (R, L, E) of all positions given the codes at `known_RK`."""
        return self.decode(self.encode(codes, cond, known_RK), cond, known_RK)

    def encode(self, codes_RLC: Tensor, cond: Cond, known_RK: Tensor) -> Tensor:
        """Return encoder outputs (R, S + K, D): the buffer, then the known positions."""
        S = self.buffer
        known_RKD = self.input(take(codes_RLC, known_RK).to(self.input.weight.dtype))
        positions = self.encoder_positions.expand(len(known_RK), -1, -1)
        at_known = take(positions[:, S:], known_RK)  # R K D
        x = torch.cat((self._buffer(cond) + positions[:, :S], known_RKD + at_known), dim=1)
        x = self._run(self.encoder_blocks, self.input_norm(x), cond)  # R S+K D
        return self.encoder_norm(x)

    def decode(self, encoded: Tensor, cond: Cond, known_RK: Tensor) -> Tensor:
        """Return decoder outputs (R, L, E) of encoder outputs (R, S + K, D)."""
        S, L = self.buffer, self.spec.length
        x = self.decoder_embed(encoded)  # R S+K E
        full = self.mask_token.to(x.dtype).expand(x.shape[0], L, -1)  # R L E
        full = full.scatter(1, known_RK[..., None].expand(-1, -1, x.shape[2]), x[:, S:])
        x = torch.cat((x[:, :S], full), dim=1) + self.decoder_positions  # R S+L E
        x = self.decoder_norm(self._run(self.decoder_blocks, x, cond))
        return x[:, S:] + self.head_positions

    def score(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return hidden vectors (B, L, E) given the earlier groups of the plan, a pass a group."""
        order = [p for group in self.plan.groups for p in group]
        parts, done = [], 0
        for group in self.plan.groups:
            known = torch.tensor(sorted(order[:done]), dtype=torch.long, device=codes.device)
            hidden = self.hidden(codes, cond, known.expand(len(cond), -1))
            parts.append(hidden[:, list(group)])
            done += len(group)
        return torch.cat(parts, dim=1)[:, torch.tensor(order, device=codes.device).argsort()]

    def start(self, cond: Cond, *, longest_draft: int = 0) -> MARState:
        """Return a state in which nothing is known."""
        self._refuse_drafts(longest_draft > 0)
        weight, R = self.input.weight, len(cond)
        codes = torch.zeros(R, self.spec.length, self.spec.dim, device=weight.device)
        none = torch.zeros(R, 0, dtype=torch.long, device=weight.device)
        return MARState(cond, codes, none)

    def predict(
        self, state: MARState, draft: Tensor | None = None, *, positions: Tensor | None = None
    ) -> Tensor:
        """Return hidden vectors (R, n, E) at `positions`, or of the plan's next group."""
        self._refuse_drafts(draft is not None)
        hidden = self.hidden(state.codes_RLC, state.cond, state.known_RK)
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
        self._refuse_drafts(counts is not None)
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

    def _refuse_drafts(self, asked: bool) -> None:
        if asked:
            raise IncompatibleError(
                "MAR draws in any order and cannot score drafts; use decoder=masked."
            )

    def _buffer(self, cond: Cond) -> Tensor:
        """Return the condition tokens (R, S, D)."""
        if cond.vector_BD is not None:
            return cond.vector_BD[:, None].expand(-1, self.buffer, -1)
        if cond.tokens_BTD is None:
            raise UserError("MAR needs a condition vector or condition tokens.")
        return cond.tokens_BTD.expand(-1, self.buffer, -1)

    def _run(self, blocks: nn.ModuleList, x: Tensor, cond: Cond) -> Tensor:
        mask = None
        if cond.mask_BT is not None and cond.vector_BD is None:  # padded condition tokens
            rest = cond.mask_BT.new_ones(len(x), x.shape[1] - self.buffer, dtype=torch.bool)
            mask = torch.cat((cond.mask_BT.bool(), rest), dim=1)[:, None, None]  # R 1 1 keys
        for block in blocks:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, mask=mask, use_reentrant=False)
            else:
                x = block(x, mask=mask)
        return x


def take(x: Tensor, index: Tensor) -> Tensor:
    """Pick positions (R, n) of vectors (R, L, C)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def truncated_normal(
    uniform: float, low: float, mean: float, std: float, *, high: float = 1.0
) -> float:
    """Return the quantile `uniform` of a normal distribution cut to [low, high]."""
    edges = torch.tensor([(low - mean) / std, (high - mean) / std], dtype=torch.float64)
    a, b = torch.special.ndtr(edges)
    value = mean + std * float(torch.special.ndtri(a + uniform * (b - a)))
    return min(high, max(low, value))
