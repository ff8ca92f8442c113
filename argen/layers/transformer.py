"""Pre-norm transformer blocks: RMSNorm and SwiGLU (Llama), or LayerNorm and GELU (GPT, ViT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from argen.layers.attention import SelfAttention
from argen.layers.cache import KVCache, Window
from argen.layers.feed_forward import FeedForwardFactory, make_feed_forward
from argen.layers.norms import NormFactory, make_norm


class DropPath(nn.Module):
    """Stochastic depth: drop a whole residual branch per sample, rescaled (arXiv 1603.09382)."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop rows of `x` (B, ...) with the given rate while training."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(keep).div_(keep)


class Block(nn.Module):
    """x + attention(norm x), then x + feed-forward(norm x).

    Its activations can be recomputed in the backward pass, see `layers.gradient_checkpointing`.

    Args:
        dim: model width D.
        heads: query heads.
        kv_heads: key/value heads.
        ffn_hidden: hidden width of the feed-forward layer.
        norm_eps: epsilon of the norms.
        norm: of each half, see `make_norm`.
        ffn: the feed-forward layer, see `make_feed_forward`.
        bias: biases in the attention's projections, see `SelfAttention`.
        qk_norm: normalise queries and keys, see `SelfAttention`.
        qk_norm_eps: epsilon of these norms.
        logit_scale: multiplies the softmax's 1 / sqrt(head width).
        attention_dropout: dropout of attention weights.
        residual_dropout: dropout after the attention's output projection.
        ffn_dropout: dropout after the feed-forward layer.
        ffn_inner_dropout: dropout of the hidden activations of a `gelu` layer.
        drop_path: stochastic depth rate.
    """

    checkpointable = True

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        ffn_hidden: int,
        norm: str | NormFactory = "rms",
        norm_eps: float = 1e-5,
        ffn: str | FeedForwardFactory = "swiglu",
        bias: bool | str = False,
        qk_norm: bool | str | NormFactory = False,
        qk_norm_eps: float = 1e-5,
        logit_scale: float = 1.0,
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        ffn_dropout: float = 0.0,
        ffn_inner_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = make_norm(norm, dim, norm_eps)
        self.attention = SelfAttention(
            dim,
            heads,
            kv_heads=kv_heads,
            bias=bias,
            qk_norm=qk_norm,
            qk_norm_eps=qk_norm_eps,
            dropout=residual_dropout,
            attention_dropout=attention_dropout,
            logit_scale=logit_scale,
        )
        self.ffn_norm = make_norm(norm, dim, norm_eps)
        self.ffn_hidden = ffn_hidden
        self.ffn = make_feed_forward(
            ffn, dim, ffn_hidden, dropout=ffn_dropout, inner_dropout=ffn_inner_dropout
        )
        self.drop_path = DropPath(drop_path)

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
        """Run the block; the arguments are those of `SelfAttention.forward`."""
        attended = self.attention(
            self.attention_norm(x_BLD),
            rope=rope,
            mask=mask,
            causal=causal,
            cache=cache,
            layer=layer,
            window=window,
        )
        x_BLD = x_BLD + self.drop_path(attended)
        return x_BLD + self.drop_path(self.ffn(self.ffn_norm(x_BLD)))
