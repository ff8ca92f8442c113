"""Multi-head self-attention with grouped key/value heads, rotary positions and a cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError
from argen.layers.cache import KVCache, Window
from argen.layers.cpu.matmul_attention import matmul_attention
from argen.layers.norms import NormFactory, UnitNorm, make_norm
from argen.layers.rope import apply_rope


class SelfAttention(nn.Module):
    """Self-attention over (B, L, D) with one fused projection whose rows are ordered q, k, v.

    Args:
        dim: model width D.
        heads: number of query heads.
        kv_heads: number of key/value heads; fewer than `heads` shares each among several queries
            (grouped-query attention, arXiv 2305.13245).
        bias: biases in the projections; `qv` leaves out that of the keys.
        qk_norm: normalise queries and keys per head before the rotation: true for RMSNorms,
            `unit` for unit length with a learned temperature, or a norm as for `make_norm`.
        qk_norm_eps: epsilon of these norms.
        dropout: dropout rate of the output projection.
        attention_dropout: dropout rate of the attention weights.
        logit_scale: multiplies the softmax's 1 / sqrt(head width).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        bias: bool | str = False,
        qk_norm: bool | str | NormFactory = False,
        qk_norm_eps: float = 1e-5,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        logit_scale: float = 1.0,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if dim % heads or heads % kv_heads:
            raise UserError(
                f"Width {dim} must be divisible by {heads} heads, and these by {kv_heads} "
                "key/value heads."
            )
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.attention_dropout, self.logit_scale = attention_dropout, logit_scale
        sizes = [n * self.head_dim for n in (heads, kv_heads, kv_heads)]
        self.qkv = (
            QVBiasLinear(dim, *sizes)
            if bias == "qv"
            else nn.Linear(dim, sum(sizes), bias=bool(bias))
        )
        self.out = nn.Linear(dim, dim, bias=bool(bias))
        kind = "rms" if qk_norm is True else qk_norm
        if kind == "unit":
            self.q_norm: nn.Module = UnitNorm(self.head_dim, heads)
            self.k_norm: nn.Module = UnitNorm(self.head_dim)
        else:
            self.q_norm = make_norm(kind, self.head_dim, qk_norm_eps) if kind else nn.Identity()
            self.k_norm = make_norm(kind, self.head_dim, qk_norm_eps) if kind else nn.Identity()
        self.plain = not kind
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BLD: Tensor,
        *,
        rope: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KVCache | None = None,
        layer: int = 0,
        window: Window | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x_BLD: the tokens.
            rope: rotary rows of these tokens, (L, hd/2, 2) or (B, 1, L, hd/2, 2).
            mask: boolean, broadcastable to (B, heads, L, keys); true where a query may look.
            causal: attend causally without a mask (ignored when `mask` is given).
            cache: where keys and values of earlier tokens are; needs `window`.
            layer: this layer's index in the cache.
            window: where in the cache these tokens go.
        """
        B, L, D = x_BLD.shape
        sizes = (D, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim)
        qkv = self.qkv(x_BLD)
        q, k, v = qkv.split(sizes, dim=-1)
        v = v.view(B, L, self.kv_heads, self.head_dim).transpose(1, 2)  # B kv L hd
        if rope is not None and self.plain:
            # Queries and keys lie side by side and are turned alike.
            qk = qkv[..., : sizes[0] + sizes[1]].view(B, L, -1, self.head_dim).transpose(1, 2)
            q, k = apply_rope(qk, rope).split((self.heads, self.kv_heads), dim=1)
        else:
            q = self.q_norm(q.view(B, L, self.heads, self.head_dim)).transpose(1, 2)
            k = self.k_norm(k.view(B, L, self.kv_heads, self.head_dim)).transpose(1, 2)
            if rope is not None:
                q, k = apply_rope(q, rope), apply_rope(k, rope)
        if self.logit_scale != 1.0:
            q = q * self.logit_scale
        if cache is not None:
            if window is None:
                raise ValueError("Attention with a cache needs the window of the new tokens.")
            k, v = cache.write(layer, k, v, window)
            k, v = k.to(q.dtype), v.to(q.dtype)
        dropout = self.attention_dropout if self.training else 0.0
        y = attend(q, k, v, mask=mask, causal=causal, dropout=dropout)
        y_BLD = y.transpose(1, 2).reshape(B, L, D)
        return self.dropout(self.out(y_BLD))


class QVBiasLinear(nn.Linear):
    """Fused projection to queries, keys and values with no bias on the keys.

    A bias on plain keys changes nothing, as it moves all logits of a query alike; on normalised
    keys it would.

    Args:
        dim: input width D.
        q: width of the queries.
        k: width of the keys.
        v: width of the values.
    """

    def __init__(self, dim: int, q: int, k: int, v: int) -> None:
        super().__init__(dim, q + k + v, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(q))
        self.v_bias = nn.Parameter(torch.zeros(v))
        self.k_width = k

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., q + k + v)."""
        return F.linear(x, self.weight, self.full_bias())

    def full_bias(self) -> Tensor:
        """Return the bias (q + k + v,), zeros on the keys."""
        return torch.cat((self.q_bias, self.q_bias.new_zeros(self.k_width), self.v_bias))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled-dot-product attention, by the fastest route for the device.

    Args:
        q: queries (B, heads, L, hd).
        k: keys (B, kv heads, M, hd).
        v: values (B, kv heads, M, hd).
        mask: boolean, broadcastable to (B, heads, L, M); true where a query may look.
        causal: attend causally without a mask (ignored when `mask` is given).
        dropout: dropout rate of the attention weights.
    """
    causal = causal and mask is None
    # Norms and rotations leave queries and keys in float32 under autocast.
    q, k = q.to(v.dtype), k.to(v.dtype)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
        if causal:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        if dropout == 0 and not torch.compiler.is_compiling():
            k, v = shared_heads(q, k, v)
            return matmul_attention(q, k, v, added_mask(mask, q))
        return manual_attention(q, k, v, mask, dropout=dropout)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        enable_gqa=k.shape[1] != q.shape[1],
    )


def manual_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, dropout: float = 0.0
) -> Tensor:
    """Attention written out in matmuls; also what the fused kernels are tested against.

    Arguments as in `attend`.
    """
    k, v = shared_heads(q, k, v)
    B, H, L, hd = q.shape
    M = k.shape[2]
    bias = added_mask(mask, q).expand(B, H, L, M).reshape(B * H, L, M)
    keys = k.reshape(B * H, M, hd).transpose(1, 2)
    logits = torch.baddbmm(bias, q.reshape(B * H, L, hd), keys, alpha=hd**-0.5)
    weights = F.dropout(torch.softmax(logits, dim=-1), dropout)
    return (weights @ v.reshape(B * H, M, hd)).view(B, H, L, hd)


def shared_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values with a copy for every query head that shares them."""
    repeats = q.shape[1] // k.shape[1]
    if repeats == 1:
        return k, v
    return k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)


def added_mask(mask: Tensor | None, q: Tensor) -> Tensor:
    """Return what a boolean mask, true where a query may look, adds to the logits."""
    if mask is None:
        return q.new_zeros(1, 1, 1, 1)
    return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(
        ~mask, float("-inf")
    )
