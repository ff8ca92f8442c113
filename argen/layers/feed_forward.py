"""Feed-forward layers of transformer blocks: gated (Llama), or plain with a GELU (GPT, ViT)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError, suggest


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


def _mlp(gelu: str, dim: int, hidden: int, *, dropout: float, inner_dropout: float) -> nn.Module:
    return MLP(dim, hidden, dropout=dropout, inner_dropout=inner_dropout, gelu=gelu)


def _gated(
    layer: Callable[..., nn.Module],
    dim: int,
    hidden: int,
    *,
    dropout: float,
    inner_dropout: float,
) -> nn.Module:
    if inner_dropout:
        raise UserError("Gated feed-forward layers have no inner dropout; set it to 0.")
    return layer(dim, hidden, dropout=dropout)


# What makes a feed-forward layer, called with (dim, hidden, dropout=...).
FeedForwardFactory = Callable[..., nn.Module]

# Feed-forward layers by name; all but `swiglu` have biases.
FEED_FORWARD: dict[str, FeedForwardFactory] = {
    "swiglu": partial(_gated, SwiGLU),
    "geglu": partial(_gated, GEGLU),
    "gelu": partial(_mlp, "none"),
    "gelu_tanh": partial(_mlp, "tanh"),
}


def make_feed_forward(
    ffn: str | FeedForwardFactory,
    dim: int,
    hidden: int,
    *,
    dropout: float = 0.0,
    inner_dropout: float = 0.0,
) -> nn.Module:
    """Return a feed-forward layer that maps (..., D) to (..., D).

    Args:
        ffn: a name of `FEED_FORWARD`, or what makes a layer from (dim, hidden, dropout=...); in
            YAML, a `_target_` with `_partial_: true`.
        dim: model width D.
        hidden: hidden width.
        dropout: dropout rate of the output.
        inner_dropout: dropout rate of the hidden activations, of the named `gelu` layers.

    Raises:
        UserError: for an unknown name, or an inner dropout where there is none.
    """
    if not isinstance(ffn, str):
        return ffn(dim, hidden, dropout=dropout)
    if ffn not in FEED_FORWARD:
        raise UserError(
            f"Unknown feed-forward layer {ffn!r}; use {', '.join(FEED_FORWARD)}, or a _target_ of "
            f"your own with _partial_: true.{suggest(ffn, FEED_FORWARD)}"
        )
    return FEED_FORWARD[ffn](dim, hidden, dropout=dropout, inner_dropout=inner_dropout)
