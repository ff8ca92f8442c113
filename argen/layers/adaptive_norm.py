"""Group norm whose scale and shift come from statistics of a code map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from argen.errors import UserError


class AdaptiveGroupNorm(nn.Module):
    """Normalise a map; scale it by the standard deviation and shift it by the mean of the codes.

    Open-MAGVIT2 (arXiv 2409.04410). The scale replaces the norm's own, it is not added to one.

    Args:
        channels: channels C of the map.
        code_channels: channels of the code map.
        groups: groups of the norm.
        eps: added to variances.
    """

    def __init__(
        self, channels: int, code_channels: int, *, groups: int = 32, eps: float = 1e-6
    ) -> None:
        super().__init__()
        if channels % groups:
            raise UserError(
                f"{channels} channels cannot be split into {groups} norm groups; choose channels "
                f"divisible by {groups}, or set norm_groups."
            )
        self.norm = nn.GroupNorm(groups, channels, eps=eps, affine=False)
        self.scale = nn.Linear(code_channels, channels)
        self.shift = nn.Linear(code_channels, channels)
        self.eps = eps

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """Map (B, C, H, W), given codes (B, code_channels, h, w), to the same shape."""
        flat = codes.flatten(2)  # B c hw
        # One position has no deviation: zero instead of the unbiased estimate's 0 / 0.
        var = flat.var(-1) if flat.shape[-1] > 1 else torch.zeros_like(flat[..., 0])
        scale, shift = self.scale((var + self.eps).sqrt()), self.shift(flat.mean(-1))  # B C
        return scale[..., None, None] * self.norm(x) + shift[..., None, None]
