"""Codes that are given beforehand: completion, in- and outpainting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from argen.errors import UserError
from argen.spec import CodeSpec


@dataclass
class Known:
    """Given codes of B samples.

    Attributes:
        codes: (B, L, ...), zero where not given.
        mask_BL: true where given.
    """

    codes: Tensor
    mask_BL: Tensor

    @classmethod
    def at(
        cls,
        positions: Tensor,
        codes: Tensor,
        *,
        spec: CodeSpec,
        batch: int,
        device: torch.device | str | None = None,
    ) -> Known:
        """Lay codes out over all positions.

        Args:
            positions: (n,) or (B, n), in the tokenizer's order.
            codes: (n, ...) or (B, n, ...).
            spec: what the generator models.
            batch: number of samples B.
            device: where to; that of the codes when None.

        Raises:
            UserError: if positions lie outside the codes, repeat, or do not match them.
        """
        device = device or codes.device
        shape = spec.code_shape(batch)
        positions = positions.to(device).expand(batch, -1)
        tail = shape[2:]
        if codes.ndim == 1 + len(tail):
            codes = codes[None].expand(batch, *codes.shape)
        if codes.shape != (*positions.shape, *tail):
            raise UserError(
                f"Known codes of shape {tuple(codes.shape)} do not match {positions.shape[1]} "
                f"known positions of {spec.describe()}: give codes {(*positions.shape, *tail)}."
            )
        length = spec.length
        if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < length:
            raise UserError(f"Known positions must lie in [0, {length - 1}].")
        row = torch.arange(batch, device=device)[:, None]
        mask_BL = torch.zeros(batch, length, dtype=torch.bool, device=device)
        mask_BL[row, positions] = True
        if int(mask_BL.sum()) != positions.numel():
            raise UserError("Known positions repeat; give each position one code.")
        full = torch.zeros(shape, dtype=codes.dtype, device=device)
        full[row, positions] = codes.to(device)
        spec.check(full)
        return cls(full, mask_BL)

    def codes_at(self, groups: Sequence[Tensor]) -> Tensor:
        """Return the codes (B, n, ...) at the n positions of groups, each (m,) or (B, m)."""
        B, device = len(self.codes), self.codes.device
        positions = torch.cat([group.expand(B, -1) for group in groups], dim=1)
        return self.codes[torch.arange(B, device=device)[:, None], positions]

    def fill(self, codes: Tensor, positions: Tensor) -> Tensor:
        """Put given codes in the place of sampled ones.

        Args:
            codes: sampled (B, n, ...).
            positions: their positions, (n,) or (B, n).
        """
        row = torch.arange(codes.shape[0], device=codes.device)[:, None]
        mask = self.mask_BL[row, positions]
        mask = mask.view(*mask.shape, *(1,) * (codes.ndim - 2))
        return torch.where(mask, self.codes[row, positions].to(codes.dtype), codes)
