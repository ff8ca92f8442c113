"""xAR's training step (arXiv 2502.20388; its code has no licence), written from its description.

Where argen differs: norms there are several operations in float32, queries and keys are turned one
after the other through a stacked copy and tables of their full width, the mask is added, and cells
lie along the batch while they are noised.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import UserError
from released.mar_diffusion import TimeEmbedding
from released.step import ReleasedNetwork
from released.xar_block import Block, Norm


class Network(ReleasedNetwork):
    """Two stacks of blocks over the cells of an image, each cell noised to a time of its own.

    Letters: B batch, L positions, n of them a cell, N = L / n cells, C code width, D model width.
    """

    betas = (0.9, 0.96)
    weight_decay = 0.02

    def __init__(
        self,
        *,
        code_dim: int,
        side: int,
        across: int,
        dim: int,
        depth: int,
        heads: int,
        second_depth: int,
        second_heads: int,
        hidden: int,
        dropout: float,
        attention_dropout: float,
        classes: int,
        label_dropout: float,
    ) -> None:
        super().__init__()
        self.side, self.across, self.classes = side, across, classes
        self.label_dropout = label_dropout
        self.class_emb = nn.Embedding(classes + 1, dim)
        self.time_embed = TimeEmbedding(dim)
        self.z_proj = nn.Linear(code_dim, dim)
        self.z_proj_ln = Norm(dim)
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, side * side, dim))
        self.decoder_embed = nn.Linear(dim, dim)
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, side * side, dim))
        places = self.cellwise(torch.cartesian_prod(torch.arange(side), torch.arange(side))[None])

        def stack(count: int, heads: int) -> nn.ModuleList:
            options = {"dropout": dropout, "attention_dropout": attention_dropout}
            return nn.ModuleList(
                Block(dim, heads, hidden=hidden, places=places[0], **options) for _ in range(count)
            )

        self.encoder_blocks, self.encoder_norm = stack(depth, heads), Norm(dim)
        self.decoder_blocks, self.decoder_norm = stack(second_depth, second_heads), Norm(dim)
        self.pred = nn.Linear(dim, code_dim)
        cell = torch.arange(across * across).repeat_interleave((side // across) ** 2)
        later = cell[None, :] > cell[:, None]
        mask = torch.zeros(1, 1, *later.shape).masked_fill(later, float("-inf"))
        self.mask: Tensor
        self.register_buffer("mask", mask)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    @classmethod
    def like(cls, generator: Any) -> Network:
        """Return one of the sizes of an XAR over equal cells of a square grid.

        Raises:
            UserError: for other entities, which the published code lacks.
        """
        network, block = generator.network, generator.network.first_blocks[0]
        found = cls(
            code_dim=generator.spec.dim,
            side=generator.spec.grid[0],
            across=round(len(generator.lengths) ** 0.5),
            dim=network.input.out_features,
            depth=len(network.first_blocks),
            heads=network.heads[0],
            second_depth=len(network.second_blocks),
            second_heads=network.heads[1],
            hidden=block.ffn.gate.out_features,
            dropout=block.attention.dropout.p,
            attention_dropout=block.attention.attention_dropout,
            classes=generator.conditioner.num_classes,
            label_dropout=generator.conditioner.drop_rate,
        )
        order = found.cellwise(torch.arange(found.side**2)[None, :, None]).flatten()
        if not torch.equal(order, generator.order.cpu()):
            raise UserError("The published xAR knows cells alone; leave entity=cell.")
        return found

    def cellwise(self, x: Tensor) -> Tensor:
        """Put positions (B, L, C) in the order of cells, raster inside each."""
        B, L, C = x.shape
        width = self.side // self.across
        cells = x.view(B, self.across, width, self.across, width, C).permute(0, 1, 3, 2, 4, 5)
        return cells.reshape(B, L, C)

    def forward(self, codes: Tensor, label: Tensor) -> Tensor:
        """Return the mean squared error of the velocities of codes (B, L, C)."""
        if self.training and self.label_dropout > 0:
            dropped = torch.rand(len(label), device=label.device) < self.label_dropout
            label = torch.where(dropped, self.classes, label)
        N = self.across**2
        t = torch.sigmoid(torch.randn(N * len(codes), device=codes.device))
        noise = torch.randn(
            N * len(codes), codes.shape[1] // N, codes.shape[2], device=codes.device
        )
        return self.loss(codes, label, t=t, noise=noise)

    def loss(self, codes: Tensor, label: Tensor, *, t: Tensor, noise: Tensor) -> Tensor:
        """Return the loss under given draws.

        Args:
            codes: (B, L, C), raster.
            label: (B,), the number of classes for none.
            t: a time a cell (N * B,), cell by cell.
            noise: normal noise (N * B, n, C), likewise.
        """
        N = self.across**2
        cells = torch.cat(self.cellwise(codes).chunk(N, dim=1))  # N*B n C
        x = (1 - t[:, None, None]) * cells + t[:, None, None] * noise
        cond = self.class_emb(label).repeat(N, 1) + self.time_embed((t * 1000).long())
        cond = torch.stack(cond.chunk(N), dim=1)  # B N D
        velocity = self._velocity(torch.cat(x.chunk(N), dim=1), cond)
        target = torch.cat((noise - cells).chunk(N), dim=1)
        return ((velocity - target) ** 2).mean()

    def _velocity(self, x: Tensor, cond: Tensor) -> Tensor:
        """Return velocities (B, L, C) of cells in order under a condition a cell."""
        h = self.z_proj_ln(self.z_proj(x) + self.encoder_pos_embed_learned)
        for block in self.encoder_blocks:
            h = block(h, cond, self.mask)
        h = self.decoder_embed(self.encoder_norm(h)) + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            h = block(h, cond, self.mask)
        return self.pred(self.decoder_norm(h))
