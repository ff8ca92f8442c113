"""A Llama-style GPT over image codes: LlamaGen (arXiv 2406.06525), IBQ and models like them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import IncompatibleError, UserError
from argen.generators.conditioning import Cond, Conditioner, condition_vector
from argen.generators.heads.base import Head
from argen.generators.heads.categorical import CategoricalHead
from argen.generators.next_token import NextToken
from argen.generators.plan import Plan
from argen.layers.adaln import AdaLNBlock, AdaNorm, Modulation, Modulations, run_modulated
from argen.layers.cache import KVCache, Window
from argen.layers.norms import RMSNorm
from argen.layers.rope import rope_table_1d, rope_table_2d, with_prefix
from argen.layers.transformer import Block, swiglu_hidden
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
        norm_eps: epsilon of the norms.
        rope: `2d` for grids, `1d` for sequences.
        rope_base: base of the rotary frequencies.
        condition_rope: rotary rows of the condition tokens, `zero` (LlamaGen) or `identity`.
        qk_norm: RMS-normalise queries and keys.
        adaln: also let the condition's vector shift, scale and gate every block, by a linear map
            of its own in each `block` (IBQ) or by one `shared` map; `none` otherwise.
        adaln_init: scales the initial shifts and scales.
        adaln_gate_init: scales the initial gates.
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
        norm_eps: float = 1e-5,
        rope: str = "2d",
        rope_base: float = 10000.0,
        condition_rope: str = "zero",
        qk_norm: bool = False,
        adaln: str = "none",
        adaln_init: float = 0.5,
        adaln_gate_init: float = 1e-5,
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
            self._require_single_ids()
        if adaln not in ("none", "block", "shared"):
            raise UserError(f"Unknown adaln {adaln!r}; use none, block or shared.")
        self.plan = Plan.raster(self.spec, trees=True)
        self.conditioner, self.prefix_length = conditioner, conditioner.length
        self.embed: nn.Module | None = None
        if head is None:
            vocab = max(s.vocab_sizes[0] for s in self.spec.segments)
            table = Projected(vocab, codebook_dim, dim) if codebook_dim else None
            self.embed = table or nn.Embedding(vocab, dim)
            head = CategoricalHead(dim, vocab)
        # Codes of different segments share the table, so the segment they predict is told apart.
        self.segment_embed = (
            nn.Embedding(len(self.spec.segments), dim) if len(self.spec.segments) > 1 else None
        )
        self.dropout = nn.Dropout(token_dropout)
        options: dict[str, Any] = {
            "kv_heads": kv_heads,
            "ffn_hidden": ffn_hidden
            or swiglu_hidden(dim, multiple_of=multiple_of, multiplier=ffn_multiplier),
            "norm_eps": norm_eps,
            "qk_norm": qk_norm,
            "attention_dropout": attention_dropout,
            "residual_dropout": residual_dropout,
            "ffn_dropout": ffn_dropout,
        }
        self.adaln = adaln != "none"
        self.modulation = Modulation(dim, dim, 6) if adaln == "shared" else None
        rates = [drop_path * i / max(1, layers - 1) for i in range(layers)]
        self.blocks = nn.ModuleList(
            AdaLNBlock(dim, heads, shared=adaln == "shared", drop_path=rate, **options)
            if self.adaln
            else Block(dim, heads, drop_path=rate, **options)
            for rate in rates
        )
        self.norm: nn.Module = nn.Identity()
        if final_norm:
            self.norm = AdaNorm(dim) if self.adaln else RMSNorm(dim, norm_eps)
        self.head = head
        self.rotary = {
            "rope": rope,
            "rope_base": rope_base,
            "condition_rope": condition_rope,
        }
        self.rope_table: Tensor
        self.register_buffer(
            "rope_table",
            rotary_rows(
                self.spec, dim // heads, rope, rope_base, conditioner.length, condition_rope
            ),
            persistent=False,
        )
        self.segment_of: Tensor
        self.register_buffer("segment_of", Plan.by_segment(self.spec).group_of(), persistent=False)
        self._init_weights(init_std, zero_init_head, adaln_init, adaln_gate_init)

    def _require_single_ids(self) -> None:
        self.require(self.spec, {"discrete": "ids"})
        if self.spec.sub_tokens != 1:
            raise IncompatibleError(
                f"{type(self).__name__} predicts one id a position, but {self.spec.describe()} has "
                f"{self.spec.sub_tokens}. Use a generator with a factorised head, or a tokenizer "
                "with one id a position."
            )

    def _init_weights(
        self, std: float, zero_init_head: bool, adaln_init: float, gate_init: float
    ) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if zero_init_head:
            for output in self.head.output_layers():
                nn.init.zeros_(output.weight)
        scale_6 = torch.tensor([adaln_init, adaln_init, gate_init] * 2)[:, None]
        with torch.no_grad():
            for block in self.blocks:
                if not isinstance(block, AdaLNBlock):
                    continue
                if block.offsets is not None:
                    block.offsets.mul_(scale_6)
                if block.modulation is not None:
                    block.modulation.proj.weight.unflatten(0, (6, -1)).mul_(scale_6[..., None])
            if isinstance(self.norm, AdaNorm):
                self.norm.modulation.proj.weight.mul_(adaln_init)

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
    ) -> Tensor:
        rope = self.rope_table[slots.clamp(max=self.rope_table.shape[0] - 1)]
        if rope.ndim == 4:
            rope = rope[:, None]  # R 1 n hd/2 2
        attention: dict[str, Any] = {
            "rope": rope,
            "mask": mask,
            "causal": causal,
            "cache": cache,
            "window": window,
        }
        if not self.adaln:
            for layer, block in enumerate(self.blocks):
                x_RnD = block(x_RnD, layer=layer, **attention)
            return self.norm(x_RnD)
        vector_R1D = condition_vector(cond)[:, None]
        if cache is not None and (window is None or window.at is None):
            if cache.modulations is None:  # in the first pass; all others have the same
                shared = self._shared(vector_R1D)
                cache.modulations = Modulations.of(self.blocks, self.norm, vector_R1D, shared)
            return run_modulated(x_RnD, self.blocks, self.norm, cache.modulations, **attention)
        shared = self._shared(vector_R1D)
        for layer, block in enumerate(self.blocks):
            x_RnD = block(x_RnD, layer=layer, cond=shared, **attention)
        return self.norm(x_RnD, vector_R1D) if isinstance(self.norm, AdaNorm) else self.norm(x_RnD)

    def _shared(self, vector_R1D: Tensor) -> Tensor:
        """Return the condition as blocks take it."""
        return vector_R1D if self.modulation is None else self.modulation(vector_R1D)


class Projected(nn.Module):
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


def rotary_rows(
    spec: CodeSpec, head_dim: int, rope: str, base: float, prefix: int, prefix_kind: str
) -> Tensor:
    """Return the rotary rows (T + L, head_dim / 2, 2) of T prefix tokens and L codes.

    Args:
        spec: the codes.
        head_dim: width of an attention head.
        rope: `2d`, each segment on a grid of its own, or `1d`.
        base: base of the frequencies.
        prefix: T.
        prefix_kind: rows of the prefix, see `with_prefix`.
    """
    if rope == "2d":
        table = torch.cat([rope_table_2d(s.shape, head_dim, base=base) for s in spec.segments])
    elif rope == "1d":
        table = rope_table_1d(spec.length, head_dim, base=base)
    else:
        raise UserError(f"Unknown rope {rope!r}; use '2d' or '1d'.")
    return with_prefix(table, prefix, kind=prefix_kind)
