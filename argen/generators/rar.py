"""Randomised autoregressive modelling: RAR (arXiv 2411.00776).

Codes are learned in random orders, annealed to raster order over the training. Every code carries
the embedding of its own position and that of the position to be predicted next, so any order can
be scored and sampled; in raster order RAR is an ordinary next-token model.

What the network is made of:
- a class token and the condition tokens as a prefix, then the codes in any order
- learned absolute tables: of a token's own position, and of the position to be predicted next
- ViT blocks with adaptive norms: LayerNorm, attention with QK-norm, GELU MLP, biases; their
  condition is the condition's vector plus a table of sequence steps
- an adaptive norm and one softmax over the vocabulary

Shapes: R rows, B samples, T prefix tokens, L codes, D model width, n codes of one pass, m steps
whose modulations are computed at once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError
from argen.generators.base import LossOutput
from argen.generators.conditioning import Cond, Conditioner, condition_vector
from argen.generators.heads.categorical import CategoricalHead
from argen.generators.next_token import NextToken
from argen.generators.plan import Plan
from argen.layers.adaln import (
    AdaLNBlock,
    AdaNorm,
    Modulation,
    ModulationCache,
    Modulations,
    run_modulated,
)
from argen.layers.cache import KVCache, Window
from argen.layers.init import init_normal
from argen.layers.masks import Predicate, causal, text_masked
from argen.layers.noise import Noise
from argen.layers.steps import arrange, positions_of, restore
from argen.spec import CodeSpec

ROWS_AHEAD = 32  # rows whose modulations are computed at once: 16 codes of a guided image
COIN, SHUFFLE = 0, 1  # the `use` of the random numbers that make the training orders


class RAR(NextToken):
    """A ViT-like causal transformer whose order of codes is an input.

    Args:
        spec: discrete codes with one id a position.
        conditioner: gives the prefix, and the vector that modulates every block (of text, the
            mean of its tokens).
        dim: model width D.
        layers: number of blocks.
        heads: attention heads.
        ffn_hidden: hidden width of the feed-forward layers, default 4 dim.
        dropout: dropout after attention and inside the feed-forward layer.
        attention_dropout: dropout of attention weights.
        anneal_start: share of the training up to which every sample has a random order.
        anneal_end: share from which all are in raster order; the probability of a random order
            falls linearly in between.
        spare_positions: unused rows at the end of the two position tables; published ones have
            1022 beyond those of prefix and codes.
        spare_steps: unused rows at the end of the table of sequence positions (98).
        init_std: standard deviation of the initial weights.
    """

    no_decay = ("positions", "targets", "steps", "cls_token")

    def __init__(
        self,
        *,
        spec: CodeSpec | dict[str, Any],
        conditioner: Conditioner,
        dim: int,
        layers: int,
        heads: int,
        ffn_hidden: int | None = None,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        anneal_start: float = 0.5,
        anneal_end: float = 0.75,
        spare_positions: int = 0,
        spare_steps: int = 0,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.spec = CodeSpec.of(spec)
        self.require_ids(self.spec)
        if not 0 <= anneal_start <= anneal_end <= 1:
            raise UserError(
                f"anneal_start={anneal_start} and anneal_end={anneal_end} are shares of the "
                "training: 0 <= anneal_start <= anneal_end <= 1."
            )
        self.plan = Plan.raster(self.spec, permutable=True, trees=True)
        # 1. Prefix: a class token stands before the condition.
        self.conditioner, self.prefix_length = conditioner, 1 + conditioner.length
        rows = self.prefix_length + self.spec.length
        vocab = max(s.vocab_sizes[0] for s in self.spec.segments)
        self.anneal_start, self.anneal_end = anneal_start, anneal_end
        self.random_ratio: Tensor  # A tensor, so that a compiled training step is not rebuilt.
        self.register_buffer("random_ratio", torch.ones(()), persistent=False)
        self.cls_token = nn.Parameter(torch.zeros(dim))
        # 2. Input embedding, and the three tables of positions.
        self.embed = nn.Embedding(vocab, dim)
        self.positions = nn.Parameter(torch.empty(rows + spare_positions, dim))
        self.targets = nn.Parameter(torch.empty(rows + spare_positions, dim))
        self.steps = nn.Parameter(torch.empty(rows + spare_steps, dim))
        # 3. Blocks and the last norm.
        self.blocks = nn.ModuleList(
            AdaLNBlock(
                dim,
                heads,
                ffn_hidden=ffn_hidden or 4 * dim,
                norm="layer",
                norm_eps=1e-6,
                ffn="gelu",
                bias=True,
                qk_norm="layer",
                qk_norm_eps=1e-6,
                residual_dropout=dropout,
                ffn_dropout=dropout,
                ffn_inner_dropout=dropout,
                attention_dropout=attention_dropout,
            )
            for _ in range(layers)
        )
        self.norm = AdaNorm(dim, norm="layer_plain", eps=1e-6)
        # 4. Output head.
        self.head = CategoricalHead(dim, vocab, bias=True)
        self._init_weights(init_std)

    def _init_weights(self, std: float) -> None:
        for table in (self.positions, self.targets, self.steps):
            nn.init.trunc_normal_(table, std=std)
        init_normal(self, std, truncated=True)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.proj.weight)

    def set_progress(self, progress: float) -> None:
        """Set the probability of a random order from the share of the training that is done."""
        if progress < self.anneal_start:
            ratio = 1.0
        elif progress >= self.anneal_end:
            ratio = 0.0
        else:
            span = self.anneal_end - self.anneal_start
            ratio = (self.anneal_end - progress) / span
        self.random_ratio.fill_(ratio)

    def sample_orders(self, batch: int, *, noise: Noise | None = None) -> Tensor:
        """Return training orders (B, L): random with probability `random_ratio`, else raster."""
        L, device = self.spec.length, self.embed.weight.device
        raster = torch.arange(L, device=device)
        if noise is None:
            coin, shuffle = torch.rand(batch, 1, device=device), torch.rand(batch, L, device=device)
        else:
            coin = noise.uniform(raster[:1], use=COIN).to(device)
            shuffle = noise.uniform(raster, use=SHUFFLE).to(device)
        return torch.where(coin < self.random_ratio, shuffle.argsort(-1), raster)

    def loss(
        self,
        codes: Tensor,
        cond: Cond,
        *,
        noise: Noise | None = None,
        order: Tensor | None = None,
    ) -> LossOutput:
        """Return the mean cross entropy in nats of codes (B, L); metrics: bits per code.

        Args:
            codes: in the tokenizer's order.
            cond: B conditions.
            noise: random numbers of the training orders.
            order: positions in the order they are predicted, (L,) or (B, L). When None, random
                in training and raster in evaluation.
        """
        if order is None and self.training:
            order = self.sample_orders(len(codes), noise=noise)
        drawn = arrange(codes, order)
        nll = self.head.loss(self.head(self.hidden(drawn, cond, order=order)), drawn)
        loss = nll.mean()
        metrics = {"bits_per_code": loss.detach() / math.log(2)}
        return LossOutput(loss, metrics, restore(nll, order))

    def _pattern(self, cond: Cond) -> Predicate:
        if cond.mask_BT is None:
            return causal
        return text_masked(F.pad(cond.mask_BT.bool(), (1, 0), value=True))

    def _prefix(self, cond: Cond, order: Tensor | None) -> Tensor:
        if cond.tokens_BTD is None:
            raise UserError("RAR needs condition tokens; use a class or text conditioner.")
        R, T = len(cond), self.prefix_length
        cls_R1D = self.cls_token.to(cond.tokens_BTD.dtype).expand(R, 1, -1)
        x_RTD = torch.cat((cls_R1D, cond.tokens_BTD), dim=1) + self.positions[:T]
        zeroth = torch.zeros(1, dtype=torch.long, device=x_RTD.device)
        first = self.targets[T + positions_of(zeroth, order)]  # 1 D or R 1 D
        return torch.cat((x_RTD[:, :-1], x_RTD[:, -1:] + first), dim=1)

    def _embed(self, codes: Tensor, steps: Tensor, order: Tensor | None) -> Tensor:
        T, last = self.prefix_length, self.spec.length - 1
        own = positions_of(steps.clamp(max=last), order)
        following = positions_of((steps + 1).clamp(max=last), order)
        # Nothing follows the last code.
        target = self.targets[T + following] * (steps < last)[..., None]
        return self.embed(codes) + self.positions[T + own] + target

    def _run(
        self,
        x_RnD: Tensor,
        slots: Tensor,
        cond: Cond,
        *,
        mask: Tensor | None,
        causal: bool = False,
        cache: KVCache | None = None,
        window: Window | None = None,
        modulations: ModulationCache | None = None,
    ) -> Tensor:
        attention: dict[str, Any] = {
            "mask": mask,
            "causal": causal,
            "cache": cache,
            "window": window,
        }
        if modulations is not None and window is not None:
            made = self._modulations_at(slots, cond, window, modulations)
            if made is not None:
                return run_modulated(x_RnD, self.blocks, self.norm, made, **attention)
        vector_RnD = self._vector(slots, cond)
        for layer, block in enumerate(self.blocks):
            x_RnD = block(x_RnD, cond=vector_RnD, layer=layer, **attention)
        return self.norm(x_RnD, vector_RnD)

    def _vector(self, slots: Tensor, cond: Cond) -> Tensor:
        """Return what modulates the blocks at slots (n,) or (R, n), (R, n, D)."""
        rows = slots.clamp(max=self.prefix_length + self.spec.length - 1)
        return condition_vector(cond)[:, None] + F.embedding(rows, self.steps)

    def _modulations_at(
        self, slots: Tensor, cond: Cond, window: Window, cache: ModulationCache
    ) -> Modulations | None:
        """Return the modulations of one slot, computed with those of some to come; else None."""
        start = window.start
        if window.n != 1 or window.at is not None or not isinstance(start, int):
            return None
        found = None if cache.kept is None else cache.kept.at(start)
        if found is None:
            following = start + torch.arange(ROWS_AHEAD // len(cond), device=slots.device)
            if len(following) < 2:
                return None
            vector_RmD = self._vector(following, cond)
            cache.kept = Modulations.of(self.blocks, self.norm, vector_RmD, first=start)
            found = cache.kept.at(start)
        return found
