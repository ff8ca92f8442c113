"""Next-scale prediction: VAR (arXiv 2404.02905).

All codes of a scale are sampled in one pass, given all coarser scales. What the network reads at a
scale is the image so far: f_hat, the sum of all coarser scales, downsampled to this scale's grid,
which only the tokenizer's quantiser can make. `bind` hands the generator a frozen copy of it.

What the network is made of:
- the condition's vector as the tokens of the first scale, then f_hat at every scale, as vectors
- learned absolute positions, and an embedding of the scale
- blocks with adaptive norms: LayerNorm without weights, attention with queries and keys of unit
  length, GELU MLP; biases but none on the keys; causal between scales, full within one
- an adaptive norm and one softmax over the vocabulary

Shapes: R rows, B samples, L codes of all scales, n codes of one scale, h x w the finest grid,
C code width, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator, LossOutput
from argen.generators.conditioning import Cond, Conditioner, condition_vector
from argen.generators.heads.categorical import CategoricalHead
from argen.generators.next_token import compute_dtype
from argen.generators.plan import Plan
from argen.layers.adaln import AdaLNBlock, AdaNorm, Modulation, init_modulated
from argen.layers.cache import KVCache, Window
from argen.layers.init import init_normal
from argen.layers.masks import block_causal, dense_mask
from argen.layers.noise import Noise
from argen.spec import CodeSpec, require_same_spec


class Pyramid(Protocol):
    """A multi-scale quantiser as a generator uses it: all but the search for codes."""

    def init_f_hat(self, batch: int) -> Tensor:
        """Return f_hat (B, C, h, w) before the first scale."""

    def embed(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., C) of ids (...)."""

    def add_scale(self, f_hat_BChw: Tensor, vectors_BnC: Tensor, k: int) -> Tensor:
        """Return f_hat with the vectors of scale `k` added."""

    def downsample_to(self, map_BChw: Tensor, k: int) -> Tensor:
        """Return f_hat on the grid of scale `k`, as vectors (B, n, C)."""

    def next_scale_inputs(self, ids_BL: Tensor) -> Tensor:
        """Return f_hat at every scale but the first, (B, L - n_0, C)."""


@dataclass
class VARState:
    """Decoding state of R rows.

    Attributes:
        cond_R1D: the condition vectors.
        f_hat_RChw: the sum of the scales committed so far.
        scale: number of committed scales.
        cache: keys and values of their inputs.
    """

    cond_R1D: Tensor
    f_hat_RChw: Tensor
    scale: int
    cache: KVCache


class VAR(Generator):
    """A transformer over scales with adaptive norms and learned absolute positions.

    Args:
        spec: discrete codes in two or more scales that share one vocabulary.
        conditioner: gives the condition vector, of width `dim`; it is also the start token.
        dim: model width D.
        layers: number of blocks.
        heads: attention heads.
        ffn_ratio: hidden width of the feed-forward layers over D.
        norm_eps: epsilon of the norms.
        shared_adaln: one modulation layer for all blocks, with learned offsets in each.
        cosine_attention: queries and keys of unit length with a learned temperature; else plain
            attention with a quarter of the usual scale.
        residual_dropout: dropout after attention.
        ffn_dropout: dropout after the feed-forward layer.
        attention_dropout: dropout of attention weights.
        drop_path: largest stochastic-depth rate; rises linearly over the layers.
        label_smoothing: share of the training target spread over all codes.
        init_std: standard deviation of the initial weights, default sqrt(1 / (3 dim)).
        init_head: factor on the head's initial weights.
        init_modulation: factor on the initial weights of shifts and scales.
        init_gate: factor on the initial weights of the gates; smaller for deeper networks.
    """

    no_decay = ("pos", "pos_start", "level_embed")

    def __init__(
        self,
        *,
        spec: CodeSpec | dict[str, Any],
        conditioner: Conditioner,
        dim: int,
        layers: int,
        heads: int,
        ffn_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        shared_adaln: bool = False,
        cosine_attention: bool = True,
        residual_dropout: float = 0.0,
        ffn_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        label_smoothing: float = 0.0,
        init_std: float | None = None,
        init_head: float = 0.02,
        init_modulation: float = 0.5,
        init_gate: float = 1e-5,
    ) -> None:
        super().__init__()
        self.spec = CodeSpec.of(spec)
        self._require_pyramid()
        self.plan = Plan.by_segment(self.spec)
        self.conditioner = conditioner
        self.heads, self.head_dim = heads, dim // heads
        first = self.spec.segments[0]
        # 1. Positions and scales.
        self.pos_start = nn.Parameter(torch.empty(1, first.length, dim))
        self.pos = nn.Parameter(torch.empty(1, self.spec.length, dim))
        self.level_embed = nn.Parameter(torch.empty(len(self.spec.segments), dim))
        # 2. Input embedding.
        self.embed = nn.Linear(first.dim, dim)
        # 3. Blocks and the last norm.
        self.shared_modulation = Modulation(dim, dim, 6) if shared_adaln else None
        self.blocks = nn.ModuleList(
            AdaLNBlock(
                dim,
                heads,
                shared=shared_adaln,
                norm="layer_plain",
                norm_eps=norm_eps,
                ffn="gelu_tanh",
                ffn_hidden=round(dim * ffn_ratio),
                bias="qv",
                qk_norm="unit" if cosine_attention else False,
                logit_scale=1.0 if cosine_attention else 0.25,
                residual_dropout=residual_dropout,
                ffn_dropout=ffn_dropout,
                attention_dropout=attention_dropout,
                drop_path=drop_path * i / max(1, layers - 1),
            )
            for i in range(layers)
        )
        self.norm = AdaNorm(dim, norm="layer_plain", eps=norm_eps)
        # 4. Output head.
        self.head: CategoricalHead = CategoricalHead(dim, first.vocab_sizes[0], bias=True)
        self.label_smoothing = label_smoothing
        # 5. The scale of each code, and the tokenizer's quantiser.
        self.level_of: Tensor
        self.register_buffer("level_of", self.plan.group_of(), persistent=False)
        self.pyramid: nn.Module | None = None
        std = (3 * dim) ** -0.5 if init_std is None else init_std
        self._init_weights(std, init_head, init_modulation, init_gate)

    def bind(self, tokenizer: nn.Module) -> None:
        """Take a frozen copy of the tokenizer's quantiser; it is no part of the weights."""
        quantizer = getattr(tokenizer, "quantizer", None)
        if not hasattr(quantizer, "frozen") or not hasattr(quantizer, "next_scale_inputs"):
            raise IncompatibleError(
                f"VAR reads the sum of all coarser scales, which {type(tokenizer).__name__} "
                "cannot make: use a multi-scale tokenizer such as tokenizer=var_vqvae."
            )
        found = cast(Any, tokenizer).spec
        require_same_spec(found, self.spec, found_in="This tokenizer", wanted_by="this generator")
        self.pyramid = cast(Any, quantizer).frozen().to(self.pos.device).train(self.training)

    def codebook(self) -> Tensor:
        """Return the vectors of all codes, (V, C)."""
        vocab = self.spec.segments[0].vocab_sizes[0]
        return self._quantizer().embed(torch.arange(vocab, device=self.pos.device))

    def loss(self, codes: Tensor, cond: Cond, *, noise: Noise | None = None) -> LossOutput:
        """Return the mean cross entropy in nats of codes (B, L), with its label smoothing.

        Metrics, not smoothed: bits per code, over all scales and at the finest.
        """
        logits_BLV = self.score(codes, cond)
        nll_BL = self.head.loss(logits_BLV, codes)
        loss, finest = nll_BL.mean(), nll_BL[:, -self.spec.segments[-1].length :].mean()
        metrics = {
            "bits_per_code": loss.detach() / math.log(2),
            "bits_per_code_finest": finest.detach() / math.log(2),
        }
        if self.label_smoothing:
            uniform = (logits_BLV.logsumexp(-1) - logits_BLV.mean(-1)).mean()
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * uniform
        return LossOutput(loss, metrics, nll_BL)

    def score(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return logits (B, L, V) of every position given all coarser scales."""
        c_B1D = self._vector(cond)
        read_BlC = self._quantizer().next_scale_inputs(codes)  # l = L - n_0
        x_BLD = torch.cat((c_B1D + self.pos_start, self._embed(read_BlC)), dim=1)
        slots = torch.arange(self.spec.length, device=codes.device)
        mask = dense_mask(block_causal(self.level_of), slots, slots)
        return self._run(x_BLD + self._places(slots), c_B1D, mask=mask)

    def start(self, cond: Cond, *, longest_draft: int = 0) -> VARState:
        """Allocate f_hat and cache for R = len(cond) rows."""
        rows, weight = len(cond), self.embed.weight
        cache = KVCache(
            layers=len(self.blocks),
            rows=rows,
            heads=self.heads,
            slots=self.spec.length,
            head_dim=self.head_dim,
            dtype=compute_dtype(weight),
            device=weight.device,
        )
        return VARState(self._vector(cond), self._quantizer().init_f_hat(rows), 0, cache)

    def predict(self, state: VARState, draft: Tensor | None = None) -> Tensor:
        """Return logits of the next scale, (R, n, V)."""
        self.refuse_drafts(draft is not None, use="decoder=sequential")
        group = self.plan.groups[state.scale]
        if state.scale == 0:
            x_RnD = state.cond_R1D + self.pos_start
        else:
            x_RnD = self._embed(self._quantizer().downsample_to(state.f_hat_RChw, state.scale))
        slots = torch.arange(group[0], group[-1] + 1, device=x_RnD.device)
        window = Window(start=group[0], n=len(group), reach=group[-1] + 1)
        return self._run(
            x_RnD + self._places(slots), state.cond_R1D, cache=state.cache, window=window
        )

    def commit(self, state: VARState, codes: Tensor, counts: Tensor | None = None) -> None:
        """Fix the next scale: ids (R, n), or vectors (R, n, C) that lie between codes."""
        vectors = codes if codes.is_floating_point() else self._quantizer().embed(codes)
        state.f_hat_RChw = self._quantizer().add_scale(state.f_hat_RChw, vectors, state.scale)
        state.scale += 1

    def _run(self, x: Tensor, cond_B1D: Tensor, **attention: Any) -> Tensor:
        """Run blocks and head over tokens (B, n, D); returns logits (B, n, V)."""
        shared = cond_B1D if self.shared_modulation is None else self.shared_modulation(cond_B1D)
        x = x.to(compute_dtype(self.embed.weight))  # as published: no float32 between the blocks
        for layer, block in enumerate(self.blocks):
            x = block(x, cond=shared, layer=layer, **attention)
        return self.head(self.norm(x, cond_B1D))

    def _embed(self, read_BnC: Tensor) -> Tensor:
        return self.embed(read_BnC.to(self.embed.weight.dtype))

    def _places(self, slots: Tensor) -> Tensor:
        """Return what tells positions (n,) apart, (1, n, D)."""
        return self.level_embed[self.level_of[slots]] + self.pos[:, slots]

    def _vector(self, cond: Cond) -> Tensor:
        return condition_vector(cond)[:, None]

    def _quantizer(self) -> Pyramid:
        if self.pyramid is None:
            raise UserError(
                "VAR builds its inputs with its tokenizer's quantiser: call "
                "generator.bind(tokenizer) first."
            )
        return cast(Pyramid, self.pyramid)

    def _require_pyramid(self) -> None:
        """Raise unless the codes are a pyramid with one vocabulary."""
        self.require(self.spec, {"discrete": "ids"})
        segments = self.spec.segments
        fit = "Use a multi-scale tokenizer (tokenizer=var_vqvae), or a next-token generator (gpt)."
        if len(segments) < 2:
            raise IncompatibleError(
                f"VAR predicts scale after scale, but {self.spec.describe()} has one scale. {fit}"
            )
        nested = all(
            a.shape[0] <= b.shape[0] and a.shape[1] <= b.shape[1] for a, b in pairwise(segments)
        )
        sorts = {(s.vocab_sizes, s.dim) for s in segments}
        if not nested or len(sorts) > 1 or self.spec.sub_tokens != 1 or not self.spec.dim:
            raise IncompatibleError(
                "VAR needs scales from coarse to fine with one id a position from one codebook, "
                f"not {self.spec.describe()}. {fit}"
            )

    @torch.no_grad()
    def _init_weights(self, std: float, head: float, modulation: float, gate: float) -> None:
        init_normal(self, std, truncated=True)
        for table in (self.pos_start, self.pos, self.level_embed):
            nn.init.trunc_normal_(table, std=std)
        self.head.proj.weight.mul_(head)
        init_modulated(self.blocks, self.norm, modulation=modulation, gate=gate)
        for block in self.blocks:
            assert isinstance(block, AdaLNBlock)
            block.attention.out.weight.div_((2 * len(self.blocks)) ** 0.5)
            cast(nn.Linear, block.ffn.fc2).weight.div_((2 * len(self.blocks)) ** 0.5)
