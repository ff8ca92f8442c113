"""NAR's training step (ThisisBillhe/NAR, MIT-style), written anew from its description.

It is LlamaGen's (see `llamagen`) up to the heads. Where argen differs: a dense mask a sample comes
from the host each step, both heads read every position, and their logits are rolled to the codes
they predict and copied into a grid of zeros piece by piece.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from released import llamagen


class Network(llamagen.Network):
    """LlamaGen's blocks over all codes, with a head to the right and one downwards.

    Args:
        right_layers: how many of the layers lie below the right head.
        side: of the grid of codes.
        dim: model width D.
        vocab: number of codes V.
        sizes: as for LlamaGen.
    """

    def __init__(self, *, right_layers: int, side: int, dim: int, vocab: int, **sizes: Any) -> None:
        super().__init__(side=side, dim=dim, vocab=vocab, **sizes)
        self.right_layers, self.side = right_layers, side
        self.medusa_norm = llamagen.Norm(dim)
        self.medusa_output = nn.Linear(dim, vocab, bias=False)
        nn.init.normal_(self.medusa_output.weight, std=0.02)
        # No buffer: the published script keeps the mask on the host, repeated for a batch.
        self.masks = visible(side)[None]

    @classmethod
    def like(cls, generator: Any) -> Network:
        """Return one of a NAR's sizes."""
        return cls(right_layers=generator.right_layers, **llamagen.sizes(generator))

    def forward(self, codes: Tensor, label: Tensor) -> Tensor:
        """Return the mean cross entropy of codes (B, L)."""
        h = self.embed(codes, label)
        if len(self.masks) != len(codes):
            self.masks = self.masks[:1].repeat(len(codes), 1, 1)
        mask = self.masks[:, None].to(h.device)
        table = self.freqs_cis[: h.shape[1]]
        right = h
        for number, layer in enumerate(self.layers, start=1):
            h = layer(h, table, mask)
            if number == self.right_layers:
                right = h
        to_right = self.output(self.norm(right)).float()
        downwards = self.medusa_output(self.medusa_norm(h)).float()
        logits = mixed(to_right, downwards, self.side)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), codes.view(-1))


def visible(side: int) -> Tensor:
    """Return who sees whom of the condition and the codes, boolean (1 + L, 1 + L).

    A code sees the condition and the codes that are no further from the top left corner.
    """
    place = torch.arange(side * side)
    distance = place // side + place % side
    mask = torch.ones(1 + side * side, 1 + side * side, dtype=torch.bool).tril()
    mask[1:, 1:] = distance <= distance[:, None]
    return mask


def mixed(right: Tensor, down: Tensor, side: int) -> Tensor:
    """Return the logits of the codes (B, L, V) from those of both heads at (B, 1 + L, V)."""
    B, _, V = right.shape
    first = (right[:, 0] + down[:, 0]) / 2
    right = right[:, 1:].reshape(B, side, side, V).roll(shifts=1, dims=2)
    down = down[:, 1:].reshape(B, side, side, V).roll(shifts=1, dims=1)
    logits = torch.zeros_like(down)
    logits[:, 0, 0] = first
    logits[:, 0, 1:] = right[:, 0, 1:]
    logits[:, 1:, 0] = down[:, 1:, 0]
    logits[:, 1:, 1:] = (right[:, 1:, 1:] + down[:, 1:, 1:]) / 2
    return logits.reshape(B, -1, V).contiguous()
