"""Next-code prediction over codes of several ids: Open-MAGVIT2, WeTok, and ELM's split vocabulary.

An inter stack runs over positions; the ids of one position are predicted by an intra stack, one
after another, or all at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from argen.errors import UserError
from argen.generators.base import LossOutput
from argen.generators.conditioning import Cond, Conditioner
from argen.generators.gpt import GPT, rotary_rows
from argen.generators.heads.split import VocabularySplit
from argen.generators.heads.subtoken import (
    FactorisedHead,
    ParallelHead,
    SubTokenEmbedding,
    SubTokenHead,
)
from argen.layers.noise import Noise
from argen.layers.transformer import Block, swiglu_hidden
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
        norm_eps: float = 1e-5,
        rope: str = "2d",
        rope_base: float = 10000.0,
        condition_rope: str = "zero",
        qk_norm: bool = False,
        residual_dropout: float = 0.1,
        ffn_dropout: float = 0.1,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        **options: Any,
    ) -> None:
        spec = CodeSpec.of(spec)
        _require_ids(self, spec)
        embed = SubTokenEmbedding(VocabularySplit(spec, split), dim, combine=combine)
        shared: dict[str, Any] = {
            "kv_heads": kv_heads,
            "ffn_hidden": ffn_hidden
            or swiglu_hidden(dim, multiple_of=multiple_of, multiplier=ffn_multiplier),
            "norm_eps": norm_eps,
            "qk_norm": qk_norm,
            "residual_dropout": residual_dropout,
            "ffn_dropout": ffn_dropout,
            "attention_dropout": attention_dropout,
        }
        head: SubTokenHead = ParallelHead(embed, dim)
        if intra_layers > 0:
            rates = [drop_path * i / max(1, intra_layers - 1) for i in range(intra_layers)]
            slots = len(embed.tables)
            # The slots of a position turn like the condition and the first codes of the grid.
            finest = CodeSpec(spec.kind, spec.segments[-1:])
            rows = rotary_rows(finest, dim // heads, rope, rope_base, 1, condition_rope)
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


def _require_ids(generator: GPT, spec: CodeSpec) -> None:
    generator.require(spec, {"discrete": "ids", "binary": "bits"})
