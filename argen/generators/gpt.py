"""A Llama-style GPT over image codes: LlamaGen (arXiv 2406.06525) and models like it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator, LossOutput
from argen.generators.conditioning import Cond, Conditioner
from argen.generators.heads import CategoricalHead
from argen.generators.plan import Plan
from argen.layers.cache import KVCache, Window
from argen.layers.masks import causal, dense_mask, text_masked
from argen.layers.noise import Noise
from argen.layers.norms import RMSNorm
from argen.layers.rope import rope_table_1d, rope_table_2d, with_prefix
from argen.layers.transformer import Block, swiglu_hidden
from argen.spec import CodeSpec


@dataclass
class GPTState:
    """Decoding state of R rows.

    Attributes:
        cond: the conditions of the rows.
        codes_RL: committed codes; positions at or beyond `length` are not meaningful.
        length: committed positions, one number when all rows agree, else long (R,).
        longest: the largest length, known on the host.
        cache: keys and values of the condition tokens and of the codes fed so far.
    """

    cond: Cond
    codes_RL: Tensor
    length: int | Tensor
    longest: int
    cache: KVCache


class GPT(Generator):
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
        token_dropout: dropout of the input embeddings.
        residual_dropout: dropout after attention.
        ffn_dropout: dropout after the feed-forward layer.
        attention_dropout: dropout of attention weights.
        drop_path: largest stochastic-depth rate; rises linearly over the layers.
        init_std: standard deviation of the initial weights.
        zero_init_head: start from uniform predictions.
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
        token_dropout: float = 0.1,
        residual_dropout: float = 0.1,
        ffn_dropout: float = 0.1,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        init_std: float = 0.02,
        zero_init_head: bool = True,
    ) -> None:
        super().__init__()
        self.spec = CodeSpec.of(spec)
        self.require(self.spec, {"discrete": "ids"})
        if self.spec.sub_tokens != 1:
            raise IncompatibleError(
                f"GPT predicts one id a position, but {self.spec.describe()} has "
                f"{self.spec.sub_tokens}. Use a generator with a factorised head, or a tokenizer "
                "with one id a position."
            )
        self.plan = Plan.raster(self.spec)
        self.kv_heads, self.head_dim = kv_heads or heads, dim // heads
        self.conditioner = conditioner
        vocab = max(s.vocab_sizes[0] for s in self.spec.segments)
        hidden = ffn_hidden or swiglu_hidden(
            dim, multiple_of=multiple_of, multiplier=ffn_multiplier
        )
        self.embed = nn.Embedding(vocab, dim)
        # Codes of different segments share the table, so the segment they predict is told apart.
        self.segment_embed = (
            nn.Embedding(len(self.spec.segments), dim) if len(self.spec.segments) > 1 else None
        )
        self.dropout = nn.Dropout(token_dropout)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                heads,
                kv_heads=kv_heads,
                ffn_hidden=hidden,
                norm_eps=norm_eps,
                qk_norm=qk_norm,
                attention_dropout=attention_dropout,
                residual_dropout=residual_dropout,
                ffn_dropout=ffn_dropout,
                drop_path=drop_path * i / max(1, layers - 1),
            )
            for i in range(layers)
        )
        self.norm = RMSNorm(dim, norm_eps)
        self.head: CategoricalHead = CategoricalHead(dim, vocab)
        self.rope_table: Tensor
        self.register_buffer(
            "rope_table",
            _rope_table(self.spec, dim // heads, rope, rope_base, conditioner, condition_rope),
            persistent=False,
        )
        self.segment_of: Tensor
        self.register_buffer("segment_of", Plan.by_segment(self.spec).group_of(), persistent=False)
        self._init_weights(init_std, zero_init_head)

    def _init_weights(self, std: float, zero_init_head: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
        if zero_init_head:
            nn.init.zeros_(self.head.proj.weight)

    def loss(self, codes: Tensor, cond: Cond, *, noise: Noise | None = None) -> LossOutput:
        """Return the mean cross entropy in nats of codes (B, L); metrics: bits per code."""
        nll_BL = self.head.loss(self.score(codes, cond), codes)
        loss = nll_BL.mean()
        return LossOutput(loss, {"bits_per_code": loss.detach() / math.log(2)}, nll_BL)

    def score(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return logits (B, L, V) of every position given the ones before it."""
        prefix, L = self._prefix(cond), codes.shape[1]
        positions = torch.arange(L - 1, device=codes.device)
        x_BSD = torch.cat((prefix, self._embed(codes[:, :-1], positions)), dim=1)  # S = T + L - 1
        slots = torch.arange(x_BSD.shape[1], device=codes.device)
        mask = None
        if cond.mask_BT is not None:
            mask = dense_mask(text_masked(cond.mask_BT), slots, slots, rows=len(cond))
        hidden = self._run(x_BSD, slots, mask=mask, causal=True)
        return self.head(hidden[:, prefix.shape[1] - 1 :])

    def start(self, cond: Cond, *, longest_draft: int = 0) -> GPTState:
        """Allocate codes and cache for R = len(cond) rows."""
        weight, R = self.embed.weight, len(cond)
        cache = KVCache(
            layers=len(self.blocks),
            rows=R,
            heads=self.kv_heads,
            # The last code is never fed; a draft may reach past the end before it is cut.
            slots=self.conditioner.length + self.spec.length - 1 + longest_draft,
            head_dim=self.head_dim,
            dtype=_compute_dtype(weight),
            device=weight.device,
        )
        codes = torch.zeros(R, self.spec.length, dtype=torch.long, device=weight.device)
        return GPTState(cond=cond, codes_RL=codes, length=0, longest=0, cache=cache)

    def predict(self, state: GPTState, draft: Tensor | None = None) -> Tensor:
        """Return logits of the next position (R, 1, V), or of the next k + 1 under a draft."""
        device, T = state.codes_RL.device, self.conditioner.length
        k = 0 if draft is None else draft.shape[1]
        if state.longest == 0:
            parts = [self._prefix(state.cond)]
            window = Window(start=0, n=T + k, reach=T + k)
            fed = torch.arange(k, device=device)
        else:
            # The last committed code is the one token the cache has not seen yet.
            last = state.length - 1
            if isinstance(last, int):
                at = torch.tensor([last], device=device)
                parts = [self._embed(state.codes_RL[:, last : last + 1], at)]
            else:
                at = last[:, None]
                parts = [self._embed(state.codes_RL.gather(1, at), at)]
            window = Window(start=T + last, n=1 + k, reach=T + state.longest + k)
            fed = at + 1 + torch.arange(k, device=device)
        if draft is not None:
            parts.append(self._embed(draft, fed))
        slots = window.slots(device)
        mask = self._window_mask(state, window, slots)
        hidden = self._run(
            torch.cat(parts, dim=1), slots, mask=mask, cache=state.cache, window=window
        )
        return self.head(hidden[:, -(1 + k) :])

    def commit(self, state: GPTState, codes: Tensor, counts: Tensor | None = None) -> None:
        """Fix the next n codes (R, n), or the first `counts` of them in each row."""
        n, L = codes.shape[1], self.spec.length
        if counts is None and isinstance(state.length, int):
            state.codes_RL[:, state.length : state.length + n] = codes
            state.length = state.longest = state.length + n
            return
        length = torch.as_tensor(state.length, device=codes.device).expand(codes.shape[0])
        counts = torch.full_like(length, n) if counts is None else counts
        step_RL = torch.arange(L, device=codes.device) - length[:, None]
        new = (step_RL >= 0) & (step_RL < counts[:, None])
        state.codes_RL = torch.where(new, codes.gather(1, step_RL.clamp(0, n - 1)), state.codes_RL)
        state.length = (length + counts).clamp(max=L)
        state.longest = int(state.length.max())

    def _prefix(self, cond: Cond) -> Tensor:
        if cond.tokens_BTD is None:
            raise UserError("GPT needs condition tokens; use a conditioner that gives a prefix.")
        tokens = cond.tokens_BTD
        if self.segment_embed is not None:
            first = self.segment_embed(self.segment_of[:1])
            tokens = torch.cat((tokens[:, :-1], tokens[:, -1:] + first), dim=1)
        return self.dropout(tokens)

    def _embed(self, codes: Tensor, positions: Tensor) -> Tensor:
        """Embed codes (R, n) that stand at positions (n,) or (R, n)."""
        x = self.embed(codes)
        if self.segment_embed is not None:
            following = (positions + 1).clamp(max=self.spec.length - 1)
            x = x + self.segment_embed(self.segment_of[following])
        return self.dropout(x)

    def _window_mask(self, state: GPTState, window: Window, slots: Tensor) -> Tensor | None:
        """Return the mask of a cached pass, or None when every slot within reach is visible."""
        text = state.cond.mask_BT
        if text is None and window.n == 1 and isinstance(window.start, int):
            return None
        keys = torch.arange(window.reach, device=slots.device)
        predicate = causal if text is None else text_masked(text)
        return dense_mask(predicate, slots, keys, rows=None if text is None else len(state.cond))

    def _run(
        self,
        x_RnD: Tensor,
        slots: Tensor,
        *,
        mask: Tensor | None,
        causal: bool = False,
        cache: KVCache | None = None,
        window: Window | None = None,
    ) -> Tensor:
        """Run the blocks over tokens at `slots`; returns normalised hidden vectors (R, n, D)."""
        rope = self.rope_table[slots.clamp(max=self.rope_table.shape[0] - 1)]
        if rope.ndim == 4:
            rope = rope[:, None]  # R 1 n hd/2 2
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


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """Return the type that matrix products come out in: autocast's when it is on."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _rope_table(
    spec: CodeSpec,
    head_dim: int,
    rope: str,
    base: float,
    conditioner: Conditioner,
    condition_rope: str,
) -> Tensor:
    """Return the rotary rows (T + L, head_dim / 2, 2) of condition tokens and codes."""
    if rope == "2d":
        table = torch.cat([rope_table_2d(s.shape, head_dim, base=base) for s in spec.segments])
    elif rope == "1d":
        table = rope_table_1d(spec.length, head_dim, base=base)
    else:
        raise UserError(f"Unknown rope {rope!r}; use '2d' or '1d'.")
    return with_prefix(table, conditioner.length, kind=condition_rope)
