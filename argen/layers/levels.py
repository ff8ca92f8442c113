"""Stacks of convolutional blocks at one resolution, what 2-D autoencoders are made of."""

from __future__ import annotations

from torch import Tensor, nn

from argen.layers.conv import AttentionBlock, ResBlock


class Level(nn.Module):
    """Residual blocks at one resolution, then resampling.

    Args:
        in_channels: channels that come in.
        out_channels: channels from the first block on.
        blocks: number of residual blocks.
        attention: follow each block with attention.
        resample: halves or doubles the sides at the end.
        bias: biases of the blocks.
        shortcut: see `ResBlock`.
        dropout: dropout in the blocks.
        norm_groups: groups of the norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        blocks: int,
        attention: bool,
        resample: nn.Module | None,
        bias: bool,
        shortcut: str,
        dropout: float,
        norm_groups: int,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResBlock(
                in_channels if i == 0 else out_channels,
                out_channels,
                bias=bias,
                dropout=dropout,
                norm_groups=norm_groups,
                shortcut=shortcut,
            )
            for i in range(blocks)
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(out_channels, norm_groups=norm_groups)
            for _ in range(blocks if attention else 0)
        )
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, h, w) to (B, out, h', w')."""
        for i, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attentions):
                x = self.attentions[i](x)
        return x if self.resample is None else self.resample(x)


def middle(
    channels: int, *, blocks: int, attention: bool, bias: bool, dropout: float, norm_groups: int
) -> nn.Sequential:
    """Return the blocks at the lowest resolution, with or without attention after the first."""
    parts: list[nn.Module] = [
        ResBlock(channels, channels, bias=bias, dropout=dropout, norm_groups=norm_groups)
        for _ in range(blocks)
    ]
    if attention:
        parts.insert(1, AttentionBlock(channels, norm_groups=norm_groups))
    return nn.Sequential(*parts)
