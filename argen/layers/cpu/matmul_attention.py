"""Attention for training in bfloat16 on a CPU: plain matmuls, a few heads at a time.

The fused CPU kernel's backward pass in bfloat16 is two to five times slower than matmuls at
the lengths that are trained on a CPU. Written out over all heads at once, these stream the (L, M)
weights of every head through memory several times; a few heads at a time they stay in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 4 << 20  # of attention weights at once: what two cores' caches hold


class ProductAttention(torch.autograd.Function):
    """softmax(q k^T scale + bias) v over N = B x heads; keeps the weights for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q_NLd: Tensor, k_NMd: Tensor, v_NMd: Tensor, bias: Tensor, scale: float
    ) -> Tensor:
        """Attend; `bias` (N, L, M), or with leading axes of 1, is added to the logits."""
        N, L, _ = q_NLd.shape
        weights_NLM = q_NLd.new_empty(N, L, k_NMd.shape[1])
        out_NLd = torch.empty_like(q_NLd)
        for part in _chunks(weights_NLM):
            added = bias[part] if len(bias) > 1 else bias
            logits = torch.baddbmm(added, q_NLd[part], k_NMd[part].transpose(1, 2), alpha=scale)
            torch.softmax(logits, dim=-1, out=weights_NLM[part])
            torch.bmm(weights_NLM[part], v_NMd[part], out=out_NLd[part])
        ctx.save_for_backward(q_NLd, k_NMd, v_NMd, weights_NLM)
        ctx.scale = scale
        return out_NLd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NLd: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries, keys and values."""
        q, k, v, weights = ctx.saved_tensors
        grad_NLd = grad_NLd.contiguous()
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        for part in _chunks(weights):
            torch.bmm(weights[part].transpose(1, 2), grad_NLd[part], out=dv[part])
            dweights = torch.bmm(grad_NLd[part], v[part].transpose(1, 2))
            dlogits = torch._softmax_backward_data(dweights, weights[part], -1, weights.dtype)
            torch.bmm(dlogits, k[part], out=dq[part])
            torch.bmm(dlogits.transpose(1, 2), q[part], out=dk[part])
        return dq.mul_(ctx.scale), dk.mul_(ctx.scale), dv, None, None


def matmul_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attend with queries (B, H, L, hd), keys and values (B, H, M, hd).

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: added to the logits, broadcastable to (B, H, L, M), in the type of the queries.
    """
    B, H, L, hd = q.shape
    M = k.shape[2]
    bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    if bias.shape[:2] == (1, 1):
        bias = bias[0].expand(1, L, M)
    else:
        bias = bias.expand(B, H, L, M).reshape(B * H, L, M)
    flat = (x.reshape(B * H, -1, hd).contiguous() for x in (q, k, v))
    out: Tensor = ProductAttention.apply(*flat, bias, hd**-0.5)
    return out.view(B, H, L, hd)


def _chunks(weights_NLM: Tensor) -> list[slice]:
    """Return slices of the heads whose weights fit the cache."""
    each = weights_NLM[0].numel() * weights_NLM.element_size()
    step = max(1, CHUNK_BYTES // max(1, each))
    return [slice(i, i + step) for i in range(0, len(weights_NLM), step)]
