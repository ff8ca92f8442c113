"""MaskGIT on a BERT: a post-norm transformer (arXiv 1810.04805).

The network of TiTok's and One-D-Piece's released generators (arXiv 2406.07550, 2501.10064) is made
of:
- a LayerNorm and dropout of the embeddings
- blocks that normalise after each half: attention, then a GELU MLP, with biases
- one softmax over the vocabulary

Shapes: B or R rows, L or S tokens, D model width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from argen.generators.maskgit.maskgit import MaskGIT
from argen.layers.attention import SelfAttention
from argen.layers.feed_forward import MLP
from argen.layers.init import init_normal


class BertBlock(nn.Module):
    """norm(x + attention x), then norm(x + MLP x).

    Args:
        dim: model width D.
        heads: attention heads.
        ffn_hidden: hidden width of the feed-forward layer.
        dropout: dropout of both branches' outputs.
        attention_dropout: dropout of the attention weights.
        norm_eps: epsilon of the norms.
    """

    checkpointable = True

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        ffn_hidden: int,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(
            dim, heads, bias=True, dropout=dropout, attention_dropout=attention_dropout
        )
        self.attention_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.ffn = MLP(dim, ffn_hidden, dropout=dropout)
        self.ffn_norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, x_BLD: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Run the block; `mask` as for `SelfAttention`."""
        x_BLD = self.attention_norm(x_BLD + self.attention(x_BLD, mask=mask))
        return self.ffn_norm(x_BLD + self.ffn(x_BLD))


class MaskGITBert(MaskGIT):
    """MaskGIT with a post-norm BERT.

    Args:
        dim: model width D.
        layers: number of blocks.
        heads: attention heads.
        ffn_hidden: hidden width of the feed-forward layers; 4 dim when None.
        dropout: dropout of embeddings and branches.
        attention_dropout: dropout of the attention weights.
        norm_eps: epsilon of the norms.
        options: as for `MaskGIT`.
    """

    def __init__(
        self,
        *,
        dim: int,
        layers: int,
        heads: int,
        ffn_hidden: int | None = None,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        norm_eps: float = 1e-12,
        **options: Any,
    ) -> None:
        super().__init__(dim=dim, **options)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            BertBlock(
                dim,
                heads,
                ffn_hidden=ffn_hidden or 4 * dim,
                dropout=dropout,
                attention_dropout=attention_dropout,
                norm_eps=norm_eps,
            )
            for _ in range(layers)
        )
        init_normal(self, 0.02)
        nn.init.normal_(self.positions, std=0.02)

    def run(self, x_RSD: Tensor, mask: Tensor | None) -> Tensor:
        """Run the blocks over embedded tokens."""
        x_RSD = self.dropout(self.norm(x_RSD))
        for block in self.blocks:
            x_RSD = block(x_RSD, mask=mask)
        return x_RSD
