"""Next-code prediction over codes of several ids: Open-MAGVIT2, WeTok, and ELM's split vocabulary.

What the network is made of:
- a GPT (`gpt.py`) over positions, the inter stack; a code enters as the combination of its
  sub-tokens' embeddings
- an intra stack over the sub-tokens of one position, which predicts them one after another, or no
  such stack and a head that predicts all of them at once

Shapes: B samples, L codes, G sub-tokens, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from argen.errors import UserError
from argen.generators.base import LossOutput
from argen.generators.conditioning import Cond, Conditioner
from argen.generators.gpt import GPT
from argen.generators.heads.split import VocabularySplit
from argen.generators.heads.subtoken import (
    FactorisedHead,
    ParallelHead,
    SubTokenEmbedding,
    SubTokenHead,
)
from argen.generators.rotary import RotaryTable, rotary_table
from argen.layers.feed_forward import FeedForwardFactory, swiglu_hidden
from argen.layers.noise import Noise
from argen.layers.norms import NormFactory
from argen.layers.transformer import Block
from argen.spec import CodeSpec


class SubTokenGPT(GPT):
    """A GPT whose codes are several ids.

    Args:
        spec: factorised codes, bits, or single ids that `split` cuts up.
        conditioner: gives the prefix tokens.
        dim: model width D.
        heads: query heads, of both stacks.
        intra_layers: blocks of the stack over the sub-tokens of a position; with 0 they are
            predicted independently of each other (ELM).
        split: number of sub-tokens, or their vocabulary sizes; for factorised codes not needed.
        combine: how sub-tokens become an input vector, see `SubTokenEmbedding`.
        average: the loss is the mean over sub-tokens (ELM), not their sum.
        kv_heads: as for `GPT`, and so on down to `drop_path`; they hold for both stacks.
        options: further arguments of `GPT`, such as `layers`.
    """

    head: SubTokenHead

    def __init__(
        self,
        *,
        spec: CodeSpec | dict[str, Any],
        conditioner: Conditioner,
        dim: int,
        heads: int,
        intra_layers: int = 2,
        split: int | Sequence[int] | None = None,
        combine: str = "sum",
        average: bool = False,
        kv_heads: int | None = None,
        ffn_hidden: int | None = None,
        ffn_multiplier: float | None = None,
        multiple_of: int = 256,
        norm: str | NormFactory = "rms",
        norm_eps: float = 1e-5,
        ffn: str | FeedForwardFactory = "swiglu",
        rope: str | RotaryTable = "2d",
        rope_base: float = 10000.0,
        condition_rope: str = "zero",
        qk_norm: bool | str | NormFactory = False,
        residual_dropout: float = 0.1,
        ffn_dropout: float = 0.1,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        **options: Any,
    ) -> None:
        spec = CodeSpec.of(spec)
        self.require(spec, {"discrete": "ids", "binary": "bits"})
        # 1. Input embedding.
        embed = SubTokenEmbedding(VocabularySplit(spec, split), dim, combine=combine)
        shared: dict[str, Any] = {
            "kv_heads": kv_heads,
            "ffn_hidden": ffn_hidden
            or swiglu_hidden(dim, multiple_of=multiple_of, multiplier=ffn_multiplier),
            "norm": norm,
            "norm_eps": norm_eps,
            "ffn": ffn,
            "qk_norm": qk_norm,
            "residual_dropout": residual_dropout,
            "ffn_dropout": ffn_dropout,
            "attention_dropout": attention_dropout,
        }
        # 2. Intra stack.
        head: SubTokenHead = ParallelHead(embed, dim)
        if intra_layers > 0:
            rates = [drop_path * i / max(1, intra_layers - 1) for i in range(intra_layers)]
            slots = len(embed.tables)
            # The slots of a position turn like the condition and the first codes of the grid.
            finest = CodeSpec(spec.kind, spec.segments[-1:])
            rows = rotary_table(
                finest,
                dim // heads,
                rope,
                base=rope_base,
                prefix=1,
                prefix_kind=condition_rope,
            )
            if len(rows) < slots:
                raise UserError(
                    f"{slots} sub-tokens need {slots - 1} or more positions, but "
                    f"{spec.describe()} has {finest.length}; use intra_layers=0."
                )
            head = FactorisedHead(
                embed,
                dim,
                blocks=[Block(dim, heads, drop_path=rate, **shared) for rate in rates],
                rope=rows[:slots],
                norm_eps=norm_eps,
            )
        # 3. Inter stack.
        super().__init__(
            spec=spec,
            conditioner=conditioner,
            dim=dim,
            heads=heads,
            rope=rope,
            rope_base=rope_base,
            condition_rope=condition_rope,
            drop_path=drop_path,
            head=head,
            final_norm=intra_layers == 0,
            **shared,
            **options,
        )
        self.average = average

    def loss(self, codes: Tensor, cond: Cond, *, noise: Noise | None = None) -> LossOutput:
        """Return the cross entropy in nats of codes, a mean over positions.

        Metrics: bits per code, and the mean cross entropy of each sub-token.
        """
        nll_BLG = self.head.nll(self.score(codes, cond), codes)
        whole = nll_BLG.sum(-1).mean()
        metrics = {"bits_per_code": whole.detach() / math.log(2)}
        metrics |= {f"nll_{g}": nll_BLG[..., g].detach().mean() for g in range(nll_BLG.shape[-1])}
        loss = nll_BLG.mean() if self.average else whole
        return LossOutput(loss, metrics, nll_BLG.sum(-1))
