"""Pre-norm transformer blocks: RMSNorm and SwiGLU (Llama), or LayerNorm and GELU (GPT, ViT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError
from argen.layers.attention import SelfAttention
from argen.layers.cache import KVCache, Window
from argen.layers.norms import make_norm


def swiglu_hidden(dim: int, *, multiple_of: int = 256, multiplier: float | None = None) -> int:
    """Return the Llama hidden width: 8/3 dim, scaled, rounded up to a multiple."""
    hidden = int(2 * 4 * dim / 3)
    if multiplier is not None:
        hidden = int(multiplier * hidden)
    return -(-hidden // multiple_of) * multiple_of


class SwiGLU(nn.Module):
    """Gated feed-forward layer, out(silu(gate x) * up x) (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.out = nn.Linear(hidden, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return self.dropout(self.out(F.silu(self.gate(x)) * self.up(x)))


class GEGLU(nn.Module):
    """Feed-forward layer gated by an exact GELU, with biases (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden)
        self.up = nn.Linear(dim, hidden)
        self.out = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return self.dropout(self.out(F.gelu(self.gate(x)) * self.up(x)))


class MLP(nn.Module):
    """Plain feed-forward layer with biases, fc2(gelu(fc1 x)), dropped out after each half.

    Args:
        dim: model width D.
        hidden: hidden width.
        dropout: dropout rate of the output.
        inner_dropout: dropout rate of the hidden activations.
        gelu: `none` for the exact GELU, `tanh` for its approximation.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        inner_dropout: float = 0.0,
        gelu: str = "none",
    ) -> None:
        super().__init__()
        self.gelu = gelu
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.inner_dropout = nn.Dropout(inner_dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return self.dropout(
            self.fc2(self.inner_dropout(F.gelu(self.fc1(x), approximate=self.gelu)))
        )


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

    Args:
        dim: model width D.
        heads: query heads.
        kv_heads: key/value heads.
        ffn_hidden: hidden width of the feed-forward layer.
        norm_eps: epsilon of the norms.
        norm: see `make_norm`.
        ffn: `swiglu`, without biases, or `gelu`, `gelu_tanh` or `geglu`, with them.
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

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        ffn_hidden: int,
        norm: str = "rms",
        norm_eps: float = 1e-5,
        ffn: str = "swiglu",
        bias: bool | str = False,
        qk_norm: bool | str = False,
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
        self.ffn: SwiGLU | GEGLU | MLP
        if ffn == "swiglu":
            self.ffn = SwiGLU(dim, ffn_hidden, dropout=ffn_dropout)
        elif ffn == "geglu":
            self.ffn = GEGLU(dim, ffn_hidden, dropout=ffn_dropout)
        elif ffn in ("gelu", "gelu_tanh"):
            self.ffn = MLP(
                dim,
                ffn_hidden,
                dropout=ffn_dropout,
                inner_dropout=ffn_inner_dropout,
                gelu="tanh" if ffn == "gelu_tanh" else "none",
            )
        else:
            raise UserError(
                f"Unknown feed-forward layer {ffn!r}; use swiglu, geglu, gelu or gelu_tanh."
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
