"""Neighbouring prediction: NAR (arXiv 2503.10696).

The codes of one anti-diagonal of the grid are drawn in one pass, so an h x w grid takes h + w - 1
passes. One head predicts the code to the right of a token, another the code below it; a code with
both neighbours takes the mean of the two predictions.

What the network is made of:
- condition tokens as a prefix, then the codes diagonal by diagonal
- 2-D rotary positions
- Llama blocks as in `gpt.py`; the right head reads after `layers` of them, the down head after
  `down_layers` more
- two softmax heads, each behind an RMSNorm of its own

Shapes: R rows, B samples, T condition tokens, L codes, S = T + L, D model width, V vocabulary, n
codes of one diagonal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator, LossOutput
from argen.generators.conditioning import Cond, Conditioner
from argen.generators.heads.categorical import CategoricalHead
from argen.generators.next_token import compute_dtype
from argen.generators.plan import Plan
from argen.generators.rotary import rotary_table
from argen.layers.cache import KVCache, Window
from argen.layers.feed_forward import FeedForwardFactory, swiglu_hidden
from argen.layers.init import init_normal
from argen.layers.masks import Predicate, block_causal, dense_mask
from argen.layers.noise import Noise
from argen.layers.norms import NormFactory, make_norm
from argen.layers.transformer import Block
from argen.spec import CodeSpec


@dataclass
class NARState:
    """Decoding state of R rows.

    Attributes:
        cond: the conditions of the rows.
        step: number of committed diagonals.
        last_Rn: codes of the last of them.
        cache: keys and values of the condition tokens and of the diagonals before it.
    """

    cond: Cond
    step: int
    last_Rn: Tensor
    cache: KVCache


class NAR(Generator):
    """A Llama-style transformer over the anti-diagonals of a grid, with two heads.

    Args:
        spec: discrete codes on one grid, one id a position.
        conditioner: gives the prefix tokens.
        dim: model width D.
        layers: blocks below the right head.
        heads: query heads.
        down_layers: further blocks below the down head.
        kv_heads: key/value heads, default as many as heads.
        ffn_hidden: hidden width of the feed-forward layers; default 8/3 dim, rounded.
        ffn_multiplier: scales that default.
        multiple_of: rounding of that default.
        norm: of the blocks and before the heads, see `make_norm`.
        norm_eps: epsilon of the named norms.
        ffn: feed-forward layer of the blocks, see `make_feed_forward`.
        rope_base: base of the 2-D rotary frequencies.
        condition_rope: rotary rows of the condition tokens, `zero` (as published) or `identity`.
        qk_norm: normalise queries and keys: true for RMSNorms, or as for `SelfAttention`.
        token_dropout: dropout of the input embeddings.
        residual_dropout: dropout after attention.
        ffn_dropout: dropout after the feed-forward layer.
        attention_dropout: dropout of attention weights.
        drop_path: largest stochastic-depth rate; rises linearly over all blocks.
        init_std: standard deviation of the initial weights; the right head starts at zero.
    """

    rope_table: Tensor
    group_of: Tensor
    place_of: Tensor
    left: Tensor
    above: Tensor
    right_share: Tensor

    def __init__(
        self,
        *,
        spec: CodeSpec | dict[str, Any],
        conditioner: Conditioner,
        dim: int,
        layers: int,
        heads: int,
        down_layers: int = 1,
        kv_heads: int | None = None,
        ffn_hidden: int | None = None,
        ffn_multiplier: float | None = None,
        multiple_of: int = 256,
        norm: str | NormFactory = "rms",
        norm_eps: float = 1e-5,
        ffn: str | FeedForwardFactory = "swiglu",
        rope_base: float = 10000.0,
        condition_rope: str = "zero",
        qk_norm: bool | str | NormFactory = False,
        token_dropout: float = 0.1,
        residual_dropout: float = 0.1,
        ffn_dropout: float = 0.1,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.spec = CodeSpec.of(spec)
        self._require_grid()
        self.plan = Plan.diagonals(self.spec.grid)
        # 1. Condition prefix.
        self.conditioner, self.prefix_length = conditioner, conditioner.length
        self.right_layers = layers
        # 2. Input embedding.
        vocab = self.spec.vocab_size
        self.embed = nn.Embedding(vocab, dim)
        self.dropout = nn.Dropout(token_dropout)
        # 3. Blocks and the last norms.
        count = layers + down_layers
        self.blocks = nn.ModuleList(
            Block(
                dim,
                heads,
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
                drop_path=drop_path * i / max(1, count - 1),
            )
            for i in range(count)
        )
        self.norm = make_norm(norm, dim, norm_eps)
        self.down_norm = make_norm(norm, dim, norm_eps)
        # 4. Output heads.
        self.head: CategoricalHead = CategoricalHead(dim, vocab)
        self.down_head = CategoricalHead(dim, vocab)
        init_normal(self, init_std, zero_bias=False)
        nn.init.zeros_(self.head.proj.weight)
        # 5. Rotary positions, and who sees and predicts whom.
        self._register_places(dim // heads, rope_base, condition_rope)

    def _register_places(self, head_dim: int, base: float, condition_rope: str) -> None:
        """Store where tokens stand, whom they see, and who predicts whom."""
        (h, w), T = self.spec.grid, self.prefix_length
        places = torch.arange(h * w)
        rows, columns = places // w, places % w
        order = torch.tensor([place for group in self.plan.groups for place in group])
        share = torch.where(columns > 0, torch.where(rows > 0, 0.5, 1.0), 0.0)
        share[0] = 0.5  # the last condition token predicts the first code with both heads
        buffers = {
            "rope_table": rotary_table(
                self.spec, head_dim, "2d", base=base, prefix=T, prefix_kind=condition_rope
            ),
            # Condition tokens see those before them; codes all nearer ones and their diagonal.
            "group_of": torch.cat((torch.arange(T), T + rows + columns)),
            # The place in [condition tokens, codes in raster order] of each slot of the cache.
            "place_of": torch.cat((torch.arange(T), T + order)),
            # The places of the neighbours that predict a code; 0 is the last condition token.
            "left": torch.where(columns > 0, places, 0),
            "above": torch.where(rows > 0, places - w + 1, 0),
            "right_share": share,
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def loss(self, codes: Tensor, cond: Cond, *, noise: Noise | None = None) -> LossOutput:
        """Return the mean cross entropy in nats of codes (B, L); metrics: bits per code."""
        nll_BL = self.head.loss(self.score(codes, cond), codes)
        loss = nll_BL.mean()
        return LossOutput(loss, {"bits_per_code": loss.detach() / math.log(2)}, nll_BL)

    def score(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return logits (B, L, V) of every position given the diagonals before its own."""
        right_BSD, down_BSD = self.hidden(codes, cond)
        read = slice(self.prefix_length - 1, None)
        return self._mix(
            right_BSD[:, read], down_BSD[:, read], self.left, self.above, self.right_share
        )

    def hidden(self, codes: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """Return what the right and the down head read at condition tokens and codes.

        Args:
            codes: (B, L).
            cond: B conditions.

        Returns:
            two tensors (B, T + L, D).
        """
        x_BSD = torch.cat((self._prefix(cond), self._embed(codes)), dim=1)
        places = torch.arange(x_BSD.shape[1], device=codes.device)
        return self._run(x_BSD, places, mask=self._mask(cond, places, places))

    def start(self, cond: Cond, *, longest_draft: int = 0) -> NARState:
        """Allocate the cache for R = len(cond) rows."""
        block, rows = self.blocks[0], len(cond)
        assert isinstance(block, Block)
        weight = self.embed.weight
        cache = KVCache(
            layers=len(self.blocks),
            rows=rows,
            heads=block.attention.kv_heads,
            slots=self.prefix_length + self.spec.length,
            head_dim=block.attention.head_dim,
            dtype=compute_dtype(weight),
            device=weight.device,
        )
        none = torch.zeros(rows, 0, dtype=torch.long, device=weight.device)
        return NARState(cond, 0, none, cache)

    def predict(self, state: NARState, draft: Tensor | None = None) -> Tensor:
        """Return logits of the next diagonal, (R, n, V), from top right to bottom left."""
        self.refuse_drafts(draft is not None, use="decoder=sequential")
        T, w, step = self.prefix_length, self.spec.grid[1], state.step
        drawn = sum(self.plan.sizes[:step])
        following = self.place_of[T + drawn : T + drawn + self.plan.sizes[step]] - T
        if step == 0:
            x_RnD, start, n = self._prefix(state.cond), 0, T
            left = above = self.left[:1] + T - 1
        else:
            n = self.plan.sizes[step - 1]
            x_RnD, start = self._embed(state.last_Rn), T + drawn - n
            # Both diagonals run down the rows, so a neighbour is found by its row.
            row = following // w - (self.place_of[start] - T) // w
            left, above = row.clamp(max=n - 1), (row - 1).clamp(min=0)
        window = Window(start=start, n=n, reach=start + n)
        fed = self.place_of[start : start + n]
        plain = step > 0 and state.cond.mask_BT is None  # every slot within reach is visible
        mask = None if plain else self._mask(state.cond, fed, self.place_of[: start + n])
        right_RnD, down_RnD = self._run(x_RnD, fed, mask=mask, cache=state.cache, window=window)
        return self._mix(right_RnD, down_RnD, left, above, self.right_share[following])

    def commit(self, state: NARState, codes: Tensor, counts: Tensor | None = None) -> None:
        """Fix the next diagonal, codes (R, n)."""
        state.last_Rn = codes
        state.step += 1

    def pattern(self, cond: Cond) -> Predicate:
        """Return which places of [condition tokens, codes in raster order] see which."""
        nearer, valid_BT, T = block_causal(self.group_of), cond.mask_BT, self.prefix_length
        if valid_BT is None:
            return nearer

        def allowed(row: Tensor, q: Tensor, k: Tensor) -> Tensor:
            text = valid_BT.bool()[row, k.clamp(max=T - 1)]
            return nearer(row, q, k) & (text | (k >= T) | (k == q))

        return allowed

    def _mask(self, cond: Cond, queries: Tensor, keys: Tensor) -> Tensor:
        rows = None if cond.mask_BT is None else len(cond)
        return dense_mask(self.pattern(cond), queries, keys, rows=rows)

    def _prefix(self, cond: Cond) -> Tensor:
        if cond.tokens_BTD is None:
            raise UserError("NAR needs condition tokens; use a conditioner that gives a prefix.")
        return self.dropout(cond.tokens_BTD)

    def _embed(self, codes: Tensor) -> Tensor:
        return self.dropout(self.embed(codes))

    def _run(
        self, x_RnD: Tensor, places: Tensor, *, mask: Tensor | None, **cached: Any
    ) -> tuple[Tensor, Tensor]:
        """Run all blocks over tokens at `places`; returns what each head reads, (R, n, D)."""
        right_RnD, rope = x_RnD, self.rope_table[places]
        for layer, block in enumerate(self.blocks):
            x_RnD = block(x_RnD, rope=rope, mask=mask, layer=layer, **cached)
            if layer == self.right_layers - 1:
                right_RnD = x_RnD
        return self.norm(right_RnD), self.down_norm(x_RnD)

    def _mix(
        self, right: Tensor, down: Tensor, left: Tensor, above: Tensor, right_share: Tensor
    ) -> Tensor:
        """Return logits (R, n, V) from the neighbours to the left and above each code.

        Args:
            right: what the right head reads, (R, m, D).
            down: what the down head reads, (R, m, D).
            left: which of the m stands to the left, (n,).
            above: which stands above, (n,).
            right_share: weight of the right head, (n,): 1, 1/2 or 0.
        """
        right_RnV, down_RnV = self.head(right[:, left]), self.down_head(down[:, above])
        return right_share[:, None] * right_RnV + (1 - right_share[:, None]) * down_RnV

    def _require_grid(self) -> None:
        self.require_ids(self.spec)
        if len(self.spec.segments) > 1:
            raise IncompatibleError(
                f"NAR walks the anti-diagonals of one grid, not {self.spec.describe()}. Use a "
                "tokenizer of that kind (tokenizer=llamagen_vq16), or for scales a VAR."
            )
