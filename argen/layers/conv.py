"""Convolutional blocks of the 2-D autoencoders that most tokenizers are built from."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError


def group_norm(channels: int, *, groups: int = 32, eps: float = 1e-6) -> nn.GroupNorm:
    """Return an affine GroupNorm."""
    if channels % groups:
        raise UserError(
            f"{channels} channels cannot be split into {groups} norm groups; choose channels "
            f"divisible by {groups}, or set norm_groups."
        )
    return nn.GroupNorm(groups, channels, eps=eps)


class ResBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, dropout, 3x3; plus the input.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; a 1x1 convolution fits the shortcut when they differ.
        bias: biases in the convolutions.
        dropout: dropout rate before the second convolution.
        norm_groups: groups of the norms.
        shortcut: what the 1x1 convolution reads when the widths differ: the `input`, or the
            `branch` itself, in which case the input is not added at all (MaskGIT's checkpoints
            depend on it).
    """

    checkpointable = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        norm_groups: int = 32,
        shortcut: str = "input",
    ) -> None:
        super().__init__()
        if shortcut not in ("input", "branch"):
            raise UserError(f"Unknown shortcut {shortcut!r}; use 'input' or 'branch'.")
        self.norm1 = group_norm(in_channels, groups=norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        self.norm2 = group_norm(out_channels, groups=norm_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.from_branch = shortcut == "branch"
        self.shortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            source = out_channels if self.from_branch else in_channels
            self.shortcut = nn.Conv2d(source, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, h, w) to (B, out, h, w)."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        if self.shortcut is None:
            return x + y
        return y + self.shortcut(y if self.from_branch else x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all pixels, plus the input; q, k, v in one 1x1 convolution.

    Args:
        channels: channels C.
        norm_groups: groups of the norm.
    """

    def __init__(self, channels: int, *, norm_groups: int = 32) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups=norm_groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        B, C, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(B, 3, C, h * w).transpose(2, 3).unbind(1)  # B hw C
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.out(y.transpose(1, 2).reshape(B, C, h, w))


class Downsample(nn.Module):
    """Halve height and width.

    Args:
        channels: channels, unchanged.
        kind: `conv_asymmetric` pads right and bottom by one, then 3x3 stride 2 (taming, LlamaGen,
            VAR, KL); `conv` is 3x3 stride 2 with padding 1; `average` is a 2x2 mean.
    """

    def __init__(self, channels: int, *, kind: str = "conv_asymmetric") -> None:
        super().__init__()
        if kind not in ("conv_asymmetric", "conv", "average"):
            raise UserError(f"Unknown downsampling {kind!r}; use conv_asymmetric, conv or average.")
        self.kind = kind
        self.conv: nn.Conv2d | None = None
        if kind != "average":
            self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=int(kind == "conv"))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h/2, w/2)."""
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.kind == "conv_asymmetric" else x)


class Upsample(nn.Module):
    """Double height and width.

    Args:
        channels: channels, unchanged.
        kind: `nearest` repeats pixels, then 3x3; `repeat` only repeats them; `depth_to_space` is a
            3x3 to four times the channels whose groups (dy, dx, channel) become the four pixels
            (Open-MAGVIT2; this is not the channel order of pixel_shuffle).
    """

    def __init__(self, channels: int, *, kind: str = "nearest") -> None:
        super().__init__()
        if kind not in ("nearest", "repeat", "depth_to_space"):
            raise UserError(f"Unknown upsampling {kind!r}; use nearest, repeat or depth_to_space.")
        self.kind = kind
        self.conv: nn.Conv2d | None = None
        if kind != "repeat":
            width = channels if kind == "nearest" else 4 * channels
            self.conv = nn.Conv2d(channels, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, 2h, 2w)."""
        if self.kind != "depth_to_space" or self.conv is None:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            return x if self.conv is None else self.conv(x)
        y = self.conv(x)
        B, _, h, w = y.shape
        y = y.view(B, 2, 2, -1, h, w).permute(0, 3, 4, 1, 5, 2)  # B C h dy w dx
        return y.reshape(B, -1, 2 * h, 2 * w)
