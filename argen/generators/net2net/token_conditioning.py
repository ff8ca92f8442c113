"""Conditions that are ids, or nothing at all: taming-transformers' maps, coordinates and start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import UserError
from argen.generators.conditioning import Cond, Conditioner


class TokenConditioner(Conditioner):
    """A prefix of T ids, each with a learned row: codes of a depth map, quantised coordinates.

    Args:
        vocab_size: number of ids.
        dim: width D of the prefix tokens.
        length: number of ids T.
        drop_rate: share of conditions dropped in training; 0 means no null row.
    """

    def __init__(
        self, vocab_size: int, dim: int, *, length: int = 1, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.vocab_size, self.length, self.drop_rate = vocab_size, length, drop_rate
        self.has_null = drop_rate > 0
        self.table = nn.Embedding(vocab_size + int(self.has_null), dim)

    def forward(self, inputs: Tensor, *, drop_B: Tensor | None = None) -> Cond:
        """Encode ids (B, T), or (B,) where T is 1."""
        ids_BT = inputs[:, None] if inputs.ndim == 1 else inputs
        if ids_BT.shape[1:] != (self.length,):
            raise UserError(
                f"This model is conditioned on {self.length} ids a sample, not on "
                f"{tuple(ids_BT.shape[1:])}."
            )
        if ids_BT.numel() and not torch.compiler.is_compiling() and ids_BT.device.type == "cpu":
            low, high = int(ids_BT.min()), int(ids_BT.max())
            if low < 0 or high >= self.table.num_embeddings:
                raise UserError(
                    f"Condition ids lie in [{low}, {high}], but must lie in "
                    f"[0, {self.vocab_size - 1}]."
                )
        if drop_B is not None:
            if drop_B.any():
                self.require_null()
            ids_BT = torch.where(drop_B.bool()[:, None], self.vocab_size, ids_BT)
        tokens_BTD = self.table(ids_BT)
        return Cond(
            vector_BD=tokens_BTD.mean(1),
            tokens_BTD=tokens_BTD,
            inputs=inputs if drop_B is None else None,
        )

    def null(self, cond: Cond) -> Cond:
        """Return the null id at every place."""
        self.require_null()
        shape = (len(cond), self.length)
        return self(torch.full(shape, self.vocab_size, device=self.table.weight.device))


class Unconditional(Conditioner):
    """One learned start token, whatever the inputs say; only their number counts.

    Args:
        dim: width D of the token.
    """

    num_classes = 1  # all samples are of one kind, which can be asked for

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.drop_rate, self.has_null, self.length = 0.0, False, 1
        self.token = nn.Parameter(torch.randn(dim) * 0.02)

    def forward(self, inputs: Any, *, drop_B: Tensor | None = None) -> Cond:
        """Return the start token for each of the B = len(inputs) samples."""
        vector_BD = self.token.expand(len(inputs), -1)
        return Cond(
            vector_BD=vector_BD,
            tokens_BTD=vector_BD[:, None],
            inputs=inputs if drop_B is None else None,
        )

    def null(self, cond: Cond) -> Cond:
        """Refuse: there is nothing to guide away from."""
        raise UserError("An unconditional model cannot be guided; sample with cfg=1.")
