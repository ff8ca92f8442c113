"""The GPT of taming-transformers (arXiv 2012.09841): learned positions, any fixed order of codes.

What the network is made of:
- condition tokens as a prefix, then the codes in a fixed order
- a learned table of sequence positions
- pre-norm blocks: LayerNorm, attention, GELU MLP, biases (GPT-2)
- a LayerNorm and one softmax over the vocabulary

Shapes: R rows, B samples, T condition tokens, L codes, D model width, V vocabulary, n codes of one
pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import UserError
from argen.generators.base import LossOutput
from argen.generators.conditioning import Cond, Conditioner
from argen.generators.heads.categorical import CategoricalHead
from argen.generators.net2net.orders import grid_order
from argen.generators.next_token import NextToken
from argen.generators.plan import Plan
from argen.layers.adaln import ModulationCache
from argen.layers.cache import KVCache, Window
from argen.layers.init import init_normal
from argen.layers.masks import Predicate, prefix_visible
from argen.layers.noise import Noise
from argen.layers.steps import arrange, restore
from argen.layers.transformer import Block
from argen.spec import CodeSpec

KEEP, REPLACE = 0, 1  # the `use` of the random numbers that corrupt the inputs


class Net2Net(NextToken):
    """Next-token prediction with LayerNorm, GELU and a table of sequence positions.

    The published models embed their class labels with the rows of the codes that have the same
    number; here conditions have rows of their own, into which an importer copies those.

    Args:
        spec: discrete codes with one id a position.
        conditioner: gives the T prefix tokens.
        dim: model width D.
        layers: number of blocks.
        heads: attention heads.
        order: order in which the codes of each segment are sampled, see `grid_order`; a list names
            the positions of all of them.
        keep_rate: share of the input codes kept in training; the others are replaced by random
            ones, while the targets stay (`pkeep`).
        vocab_size: rows of the code table and of the head, where they exceed the codes'.
        positions: rows of the position table, T + L - 1 or more.
        unmasked: this many first tokens of the sequence see each other. Beyond T a code would see
            its own successor.
        embed_dropout: dropout of the embeddings.
        residual_dropout: dropout after attention and after the feed-forward layer.
        attention_dropout: dropout of attention weights.
        init_std: standard deviation of the initial weights.
    """

    no_decay = ("positions",)

    def __init__(
        self,
        *,
        spec: CodeSpec | dict[str, Any],
        conditioner: Conditioner,
        dim: int,
        layers: int,
        heads: int,
        order: str | Sequence[int] = "raster",
        keep_rate: float = 1.0,
        vocab_size: int | None = None,
        positions: int | None = None,
        unmasked: int = 0,
        embed_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.spec = CodeSpec.of(spec)
        self.require_ids(self.spec)
        codes = max(s.vocab_sizes[0] for s in self.spec.segments)
        self.vocab_size = max(codes, vocab_size or 0)
        if not 0 < keep_rate <= 1:
            raise UserError(f"keep_rate={keep_rate} must lie in (0, 1]; 1 keeps every input code.")
        self.keep_rate, self.unmasked = keep_rate, unmasked
        steps = _order(order, self.spec)
        self.order = None if steps == sorted(steps) else torch.tensor(steps)
        self.plan = Plan.in_order(steps, trees=True)
        self.conditioner, self.prefix_length = conditioner, conditioner.length
        length = conditioner.length + self.spec.length - 1
        if positions is not None and positions < length:
            raise UserError(
                f"positions={positions} rows are too few for {conditioner.length} condition tokens "
                f"and {self.spec.length} codes, which need {length}."
            )
        self.embed = nn.Embedding(self.vocab_size, dim)
        self.positions = nn.Parameter(torch.zeros(positions or length, dim))
        self.dropout = nn.Dropout(embed_dropout)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                heads,
                ffn_hidden=4 * dim,
                norm="layer",
                ffn="gelu",
                bias=True,
                residual_dropout=residual_dropout,
                ffn_dropout=residual_dropout,
                attention_dropout=attention_dropout,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = CategoricalHead(dim, self.vocab_size, codes=codes)
        init_normal(self, init_std)

    def loss(self, codes: Tensor, cond: Cond, *, noise: Noise | None = None) -> LossOutput:
        """Return the mean cross entropy in nats of codes (B, L); metrics: bits per code.

        In training some input codes are replaced first, see `keep_rate`.
        """
        fed = self.corrupt(codes, noise) if self.training and self.keep_rate < 1 else codes
        hidden = self.hidden(arrange(fed, self.order), cond, order=self.order)
        nll_BL = self.head.loss(restore(self.head(hidden), self.order), codes)
        loss = nll_BL.mean()
        return LossOutput(loss, {"bits_per_code": loss.detach() / math.log(2)}, nll_BL)

    def corrupt(self, codes: Tensor, noise: Noise | None = None) -> Tensor:
        """Replace codes (B, L) by random ones, each with probability 1 - keep_rate."""
        if noise is None:
            keep, value = torch.rand((2, *codes.shape), device=codes.device)
        else:
            at = torch.arange(codes.shape[1], device=codes.device)
            keep, value = (noise.uniform(at, use=u).to(codes.device) for u in (KEEP, REPLACE))
        replaced = (value * self.vocab_size).long().clamp(max=self.vocab_size - 1)
        return torch.where(keep < self.keep_rate, codes, replaced)

    def _pattern(self, cond: Cond) -> Predicate:
        if self.unmasked and cond.mask_BT is None:
            return prefix_visible(self.unmasked)
        return super()._pattern(cond)

    def _prefix(self, cond: Cond, order: Tensor | None) -> Tensor:
        if cond.tokens_BTD is None:
            raise UserError("Net2Net needs condition tokens; use a conditioner with a prefix.")
        return self.dropout(cond.tokens_BTD + self.positions[: self.prefix_length])

    def _embed(self, codes: Tensor, steps: Tensor, order: Tensor | None) -> Tensor:
        rows = (self.prefix_length + steps).clamp(max=self.positions.shape[0] - 1)
        return self.dropout(self.embed(codes) + self.positions[rows])

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
        for layer, block in enumerate(self.blocks):
            x_RnD = block(x_RnD, mask=mask, causal=causal, cache=cache, layer=layer, window=window)
        return self.norm(x_RnD)


def _order(order: str | Sequence[int], spec: CodeSpec) -> list[int]:
    """Return positions in the order they are drawn; named orders walk segment after segment."""
    if not isinstance(order, str):
        return grid_order(order, (1, spec.length))
    found: list[int] = []
    for segment in spec.segments:
        start = len(found)
        found += [start + p for p in grid_order(order, segment.shape)]
    return found
