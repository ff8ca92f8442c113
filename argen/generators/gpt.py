"""A Llama-style GPT over image codes: LlamaGen (arXiv 2406.06525) and models like it.

What the network is made of:
- condition tokens as a prefix, then the codes in raster order
- rotary positions, 2-D on the grid of the codes or 1-D
- pre-norm blocks: RMSNorm, attention (grouped-query where `kv_heads` is fewer), SwiGLU; no biases
- optionally QK-norm, stochastic depth, another norm, feed-forward layer or rotary table
- dropout of embeddings, of both residual branches and of attention weights
- one softmax over the vocabulary, or a head that is given

Shapes: R rows, B samples, T prefix tokens, L codes, n tokens of one pass, D model width, C codebook
width, hd head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError
from argen.generators.conditioning import Cond, Conditioner
from argen.generators.heads.base import Head
from argen.generators.heads.categorical import CategoricalHead
from argen.generators.next_token import NextToken
from argen.generators.plan import Plan
from argen.generators.rotary import RotaryTable, rotary_table
from argen.layers.adaln import ModulationCache
from argen.layers.cache import KVCache, Window
from argen.layers.feed_forward import FeedForwardFactory, swiglu_hidden
from argen.layers.init import init_normal
from argen.layers.norms import NormFactory, make_norm
from argen.layers.transformer import Block
from argen.spec import CodeSpec


class GPT(NextToken):
    """Next-token prediction with a condition prefix, rotary positions and SwiGLU blocks.

    Args:
        spec: discrete codes with one id a position; several segments are read one after another.
        conditioner: gives the prefix tokens.
        dim: model width D.
        layers: number of blocks.
        heads: query heads.
        kv_heads: key/value heads (grouped-query attention), default as many as heads.
        ffn_hidden: hidden width of the feed-forward layers; default 8/3 dim, rounded.
        ffn_multiplier: scales that default.
        multiple_of: rounding of that default.
        norm: of the blocks and of what the head reads: a name, or a `_target_` of your own with
            `_partial_: true`, see `make_norm`.
        norm_eps: epsilon of the named norms.
        ffn: feed-forward layer of the blocks, likewise, see `make_feed_forward`.
        rope: rotary table of the codes, likewise: `2d` for grids, `1d` for sequences, see
            `rotary_table`.
        rope_base: base of the rotary frequencies.
        condition_rope: rotary rows of the condition tokens, `zero` (LlamaGen) or `identity`.
        qk_norm: normalise queries and keys: true for RMSNorms, or as for `SelfAttention`.
        codebook_dim: embed codes by rows of this width and a two-layer network, so that a
            tokenizer's codebook can be loaded into the table; 0 for a plain table.
        token_dropout: dropout of the input embeddings.
        residual_dropout: dropout after attention.
        ffn_dropout: dropout after the feed-forward layer.
        attention_dropout: dropout of attention weights.
        drop_path: largest stochastic-depth rate; rises linearly over the layers.
        init_std: standard deviation of the initial weights.
        zero_init_head: start from uniform predictions.
        head: predicts codes in place of one softmax, and embeds them, as `head.embed`.
        final_norm: normalise what the head reads.
    """

    def __init__(
        self,
        *,
        spec: CodeSpec | dict[str, Any],
        conditioner: Conditioner,
        dim: int,
        layers: int,
        heads: int,
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
        codebook_dim: int = 0,
        token_dropout: float = 0.1,
        residual_dropout: float = 0.1,
        ffn_dropout: float = 0.1,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        init_std: float = 0.02,
        zero_init_head: bool = True,
        head: Head | None = None,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.spec = CodeSpec.of(spec)
        if head is None:
            self.require_ids(self.spec)
        self.plan = Plan.raster(self.spec, trees=True)
        # 1. Condition prefix.
        self.conditioner, self.prefix_length = conditioner, conditioner.length
        # 2. Input embedding; a head of its own embeds its own codes.
        self.embed: nn.Module | None = None
        if head is None:
            vocab = max(s.vocab_sizes[0] for s in self.spec.segments)
            table = CodebookEmbedding(vocab, codebook_dim, dim) if codebook_dim else None
            self.embed = table or nn.Embedding(vocab, dim)
            head = CategoricalHead(dim, vocab)
        # Codes of different segments share the table, so the segment they predict is told apart.
        self.segment_embed = (
            nn.Embedding(len(self.spec.segments), dim) if len(self.spec.segments) > 1 else None
        )
        self.dropout = nn.Dropout(token_dropout)
        # 3. Blocks and the last norm.
        self._make_blocks(
            [drop_path * i / max(1, layers - 1) for i in range(layers)],
            dim=dim,
            heads=heads,
            kv_heads=kv_heads,
            ffn_hidden=ffn_hidden
            or swiglu_hidden(dim, multiple_of=multiple_of, multiplier=ffn_multiplier),
            norm=norm,
            norm_eps=norm_eps,
            ffn=ffn,
            qk_norm=qk_norm,
            attention_dropout=attention_dropout,
            residual_dropout=residual_dropout,
            ffn_dropout=ffn_dropout,
        )
        self.norm = self._make_norm(dim, norm, norm_eps) if final_norm else nn.Identity()
        # 4. Output head.
        self.head = head
        # 5. Rotary positions and the segment of each code, which follow from the spec.
        self.rotary = {"rope": rope, "rope_base": rope_base, "condition_rope": condition_rope}
        self.rope_table: Tensor
        self.register_buffer(
            "rope_table",
            rotary_table(
                self.spec,
                dim // heads,
                rope,
                base=rope_base,
                prefix=conditioner.length,
                prefix_kind=condition_rope,
            ),
            persistent=False,
        )
        self.segment_of: Tensor
        self.register_buffer("segment_of", Plan.by_segment(self.spec).group_of(), persistent=False)
        self._init_weights(init_std, zero_init_head)

    def _make_blocks(
        self, drop_paths: Sequence[float], *, dim: int, heads: int, **options: Any
    ) -> None:
        """Set `blocks`, one for each stochastic-depth rate."""
        self.blocks = nn.ModuleList(
            Block(dim, heads, drop_path=rate, **options) for rate in drop_paths
        )

    def _make_norm(self, dim: int, norm: str | NormFactory, eps: float) -> nn.Module:
        """Return the norm before the head."""
        return make_norm(norm, dim, eps)

    def _init_weights(self, std: float, zero_init_head: bool) -> None:
        init_normal(self, std)
        if zero_init_head:
            for output in self.head.output_layers():
                nn.init.zeros_(output.weight)

    def _prefix(self, cond: Cond, order: Tensor | None) -> Tensor:
        if cond.tokens_BTD is None:
            raise UserError("GPT needs condition tokens; use a conditioner that gives a prefix.")
        tokens = cond.tokens_BTD
        if self.segment_embed is not None:
            first = self.segment_embed(self.segment_of[:1])
            tokens = torch.cat((tokens[:, :-1], tokens[:, -1:] + first), dim=1)
        return self.dropout(tokens)

    def _embed(self, codes: Tensor, steps: Tensor, order: Tensor | None) -> Tensor:
        table = self.head.embed if self.embed is None else self.embed
        assert isinstance(table, nn.Module)
        x = table(codes)
        if self.segment_embed is not None:
            following = (steps + 1).clamp(max=self.spec.length - 1)
            x = x + self.segment_embed(self.segment_of[following])
        return self.dropout(x)

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
        rope = self._rope(slots)
        for layer, block in enumerate(self.blocks):
            x_RnD = block(
                x_RnD,
                rope=rope,
                mask=mask,
                causal=causal,
                cache=cache,
                layer=layer,
                window=window,
            )
        return self.norm(x_RnD)

    def _rope(self, slots: Tensor) -> Tensor:
        """Return the rotary rows of slots (n,) or (R, n): (n, hd/2, 2) or (R, 1, n, hd/2, 2)."""
        rope = self.rope_table[slots.clamp(max=self.rope_table.shape[0] - 1)]
        return rope[:, None] if rope.ndim == 4 else rope


class CodebookEmbedding(nn.Module):
    """Embedding by codebook rows of width C and a two-layer GELU network.

    Args:
        vocab_size: number of codes V.
        codebook_dim: C.
        dim: model width D.
    """

    def __init__(self, vocab_size: int, codebook_dim: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, codebook_dim)
        self.fc1 = nn.Linear(codebook_dim, dim)
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, codes: Tensor) -> Tensor:
        """Embed codes (R, n) as (R, n, D)."""
        return self.fc2(F.gelu(self.fc1(self.table(codes)), approximate="tanh"))
