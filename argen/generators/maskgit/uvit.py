"""MaskGIT on a U-ViT: a transformer whose early states are joined to late ones (arXiv 2209.12152).

The network of TiTok's best released generator (arXiv 2406.07550) is made of:
- pre-norm blocks: LayerNorm, attention, GELU MLP; biases, but none in the attention's inputs
- long skips: each block of the second half first joins the state after its twin in the first half
- a LayerNorm and one softmax over the vocabulary

Shapes: B or R rows, L or S tokens, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import UserError
from argen.generators.maskgit.maskgit import MaskGIT
from argen.layers.init import init_normal
from argen.layers.transformer import Block


class UViTBlock(nn.Module):
    """A pre-norm block behind an optional long skip connection.

    Args:
        dim: model width D.
        heads: attention heads.
        ffn_hidden: hidden width of the feed-forward layer.
        skip: join an earlier state to the input by a linear layer first.
        dropout: dropout of both branches' outputs.
        attention_dropout: dropout of the attention weights.
    """

    checkpointable = True

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        ffn_hidden: int,
        skip: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.skip = nn.Linear(2 * dim, dim) if skip else None
        self.block = Block(
            dim,
            heads,
            ffn_hidden=ffn_hidden,
            norm="layer",
            ffn="gelu",
            bias=True,
            residual_dropout=dropout,
            ffn_dropout=dropout,
            attention_dropout=attention_dropout,
        )
        # Only the output projection of the attention has a bias.
        self.block.attention.qkv = nn.Linear(dim, 3 * dim, bias=False)

    def forward(
        self, x_BLD: Tensor, *, earlier: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Run the block on `x`, joined with the state `earlier` (B, L, D) if it has a skip."""
        if self.skip is not None:
            if earlier is None:
                raise ValueError("A block with a skip connection needs the earlier state.")
            x_BLD = self.skip(torch.cat((x_BLD, earlier), dim=-1))
        return self.block(x_BLD, mask=mask)


class MaskGITUViT(MaskGIT):
    """MaskGIT with a U-ViT: layers // 2 blocks in, one in the middle, layers // 2 out.

    Args:
        dim: model width D.
        layers: number of blocks without the middle one; an odd one is left out.
        heads: attention heads.
        ffn_hidden: hidden width of the feed-forward layers; 4 dim when None.
        dropout: dropout of the branches; the released models have none.
        attention_dropout: dropout of the attention weights.
        options: as for `MaskGIT`.
    """

    def __init__(
        self,
        *,
        dim: int,
        layers: int,
        heads: int,
        ffn_hidden: int | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(dim=dim, **options)
        if layers < 2:
            raise UserError(f"layers={layers}: a U-ViT needs at least 2, half in and half out.")

        def block(skip: bool) -> UViTBlock:
            return UViTBlock(
                dim,
                heads,
                ffn_hidden=ffn_hidden or 4 * dim,
                skip=skip,
                dropout=dropout,
                attention_dropout=attention_dropout,
            )

        self.in_blocks = nn.ModuleList(block(False) for _ in range(layers // 2))
        self.middle = block(False)
        self.out_blocks = nn.ModuleList(block(True) for _ in range(layers // 2))
        self.norm = nn.LayerNorm(dim)
        init_normal(self, 0.02, truncated=True)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def run(self, x_RSD: Tensor, mask: Tensor | None) -> Tensor:
        """Run the blocks over embedded tokens."""
        states = []
        for block in self.in_blocks:
            x_RSD = block(x_RSD, mask=mask)
            states.append(x_RSD)
        x_RSD = self.middle(x_RSD, mask=mask)
        for block in self.out_blocks:
            x_RSD = block(x_RSD, earlier=states.pop(), mask=mask)
        return self.norm(x_RSD)
