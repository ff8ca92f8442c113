"""Networks that tell images from reconstructions, for the adversarial term of a tokenizer.

All map images (B, 3, H, W) in [-1, 1] to logits, large for real ones; one a patch, (B, 1, h, w),
or one an image, (B, 1). They know nothing of losses; see
`argen.objectives.adversarial`.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError
from argen.layers.collective import all_sum
from argen.layers.conv import group_norm

BINOMIAL = {3: (1.0, 2.0, 1.0), 4: (1.0, 3.0, 3.0, 1.0), 5: (1.0, 4.0, 6.0, 4.0, 1.0)}


class ActNorm(nn.Module):
    """A per-channel affine map that normalises the first batch it is trained on (1807.03039).

    The batch is that of all processes together, so that they start alike.

    Args:
        channels: channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.initialized: Tensor
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        axes, count = (0, 2, 3), x[:, 0].numel()
        total = all_sum(x.new_tensor(float(count), dtype=torch.float32))
        mean = all_sum(x.float().sum(axes, keepdim=True)) / total
        spread = all_sum((x.float() - mean).square().sum(axes, keepdim=True))
        std = (spread / (total - 1)).sqrt()
        self.loc.copy_(-mean)
        self.scale.copy_(1 / (std + 1e-6))
        self.initialized.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        if self.training and not self.initialized:
            self._initialise(x)
        return self.scale * (x + self.loc)


class PatchDiscriminator(nn.Module):
    """One logit a patch, patches overlap: the PatchGAN of pix2pix (arXiv 1611.07004) as in VQGAN.

    Args:
        channels: width of the first layer; doubled a layer, eight times at most.
        layers: strided layers; a logit sees 70 pixels with 3, 34 with 2, 16 with 1.
        in_channels: channels of the image.
        norm: `batch` (no biases before it) or `act`.
        kernel: side of the kernels.
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        layers: int = 3,
        in_channels: int = 3,
        norm: str = "batch",
        kernel: int = 4,
    ) -> None:
        super().__init__()
        if norm not in ("batch", "act"):
            raise UserError(f"Unknown discriminator norm {norm!r}; use batch or act.")
        self.layers, self.kernel = layers, kernel
        parts: list[nn.Module] = [
            nn.Conv2d(in_channels, channels, kernel, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        width = channels
        for n in range(1, layers + 1):
            wider = channels * min(2**n, 8)
            stride = 2 if n < layers else 1
            parts += [
                nn.Conv2d(width, wider, kernel, stride=stride, padding=1, bias=norm == "act"),
                nn.BatchNorm2d(wider) if norm == "batch" else ActNorm(wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        parts.append(nn.Conv2d(width, 1, kernel, padding=1))
        self.main = nn.Sequential(*parts)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def logit_side(self, side: int) -> int:
        """Return how many logits a side of `side` pixels gives; not positive if it is too small."""
        for n in range(self.layers + 2):
            side = (side + 2 - self.kernel) // (2 if n < self.layers else 1) + 1
        return side

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to logits (B, 1, h, w).

        Raises:
            UserError: if the image is too small for this many strided layers.
        """
        if min(self.logit_side(side) for side in images.shape[2:]) < 1:
            raise UserError(
                f"Images of {images.shape[2]}x{images.shape[3]} are too small for a patch "
                f"discriminator of {self.layers} layers; use fewer layers."
            )
        return self.main(images)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the zeros before and after a side so that it gives ceil(size / stride) outputs.

    TensorFlow's rule: an odd number puts the larger half after.
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "same" does."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', ceil(h / stride), ceil(w / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, columns = (same_padding(side, kernel, stride) for side in x.shape[2:])
        return super().forward(F.pad(x, (*columns, *rows)))


class Blur(nn.Module):
    """Low-pass filter every channel, with stride: no aliasing when halving (arXiv 1904.11486).

    Args:
        kernel: side of the binomial filter, 3, 4 or 5.
        stride: step of the filter.
        border: what lies beyond the image, `zeros` or `reflect`.
        pad_for: kernel that the padding is right for; `kernel` itself if not given.
    """

    def __init__(
        self,
        kernel: int = 4,
        *,
        stride: int = 2,
        border: str = "zeros",
        pad_for: int | None = None,
    ) -> None:
        super().__init__()
        if kernel not in BINOMIAL:
            raise UserError(f"There is no blur of {kernel} pixels; use 3, 4 or 5.")
        line = torch.tensor(BINOMIAL[kernel])
        square = line[:, None] * line[None, :]
        self.stride, self.pad_for = stride, pad_for or kernel
        self.mode = "constant" if border == "zeros" else border
        self.kernel: Tensor
        self.register_buffer("kernel", (square / square.sum())[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, about h / stride, about w / stride)."""
        rows, columns = (same_padding(side, self.pad_for, self.stride) for side in x.shape[2:])
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        padded = F.pad(x, (*columns, *rows), mode=self.mode)
        return F.conv2d(padded, kernel, stride=self.stride, groups=x.shape[1])


class BlurDiscriminator(nn.Module):
    """Patch discriminator with blurred down-sampling and group norms (TiTok, arXiv 2406.07550).

    Always gives `side` x `side` logits, by adaptive maximum, whatever the image's size.

    Args:
        channels: width of the first stage; the widths are 1, 1, 2, 4, ... times that.
        stages: halvings.
        in_channels: channels of the image.
        blur: blur before halving, else a 2x2 mean.
        blur_kernel: side of the blur.
        norm_groups: groups of the norms.
        side: logits a side.
        unit_range: rescale images to [0, 1] first, the published range.
    """

    def __init__(
        self,
        *,
        channels: int = 128,
        stages: int = 3,
        in_channels: int = 3,
        blur: bool = True,
        blur_kernel: int = 4,
        norm_groups: int = 32,
        side: int = 16,
        unit_range: bool = True,
    ) -> None:
        super().__init__()
        if stages < 1:
            raise UserError(f"The discriminator needs at least one stage, not {stages}.")
        self.unit_range, self.side = unit_range, side
        self.conv_in = SameConv2d(in_channels, channels, 5)
        widths = [channels, *(channels * 2**i for i in range(stages))]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                SameConv2d(width, wider, 3),
                # Padded for 4 whatever the kernel, as published.
                Blur(blur_kernel, pad_for=4) if blur else nn.AvgPool2d(2),
                group_norm(wider, groups=norm_groups, eps=1e-5),
                nn.LeakyReLU(0.1),
            )
            for width, wider in pairwise(widths)
        )
        self.to_logits = nn.Sequential(
            nn.Conv2d(widths[-1], widths[-1], 1), nn.LeakyReLU(0.1), SameConv2d(widths[-1], 1, 5)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to logits (B, 1, side, side)."""
        x = (images + 1) / 2 if self.unit_range else images
        x = F.leaky_relu(self.conv_in(x), 0.1)  # B C H W
        for block in self.blocks:
            x = block(x)  # B C' H/2 W/2
        return self.to_logits(F.adaptive_max_pool2d(x, self.side))


class ResidualStage(nn.Module):
    """Two 3x3, a blur and a strided 3x3, added to a strided 1x1; variance kept."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(channels, out_channels, 1, stride=2)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.blur = Blur(3, stride=1, border="reflect")
        self.down = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h/2, w/2)."""
        y = F.leaky_relu(self.conv1(x), 0.2)
        y = F.leaky_relu(self.conv2(y), 0.2)
        return (self.down(self.blur(y)) + self.skip(x)) * math.sqrt(0.5)


class StyleGANDiscriminator(nn.Module):
    """One logit for the whole image: the residual discriminator of StyleGAN2 (arXiv 1912.04958).

    Args:
        image_size: side of the images, a power of two from 8 on.
        in_channels: channels of the image.
        multiplier: widens the stages at 64 pixels and above.
        max_channels: width at 32 pixels and below; stages above halve it again and again.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int = 3,
        multiplier: int = 1,
        max_channels: int = 512,
    ) -> None:
        super().__init__()
        if image_size < 8 or image_size & (image_size - 1):
            raise UserError(
                f"image_size {image_size} is not a power of two from 8 on; use the patch "
                "discriminator for other sizes."
            )
        self.image_size = image_size

        def width(side: int) -> int:
            return max_channels if side <= 32 else max_channels * 32 * multiplier // side

        self.conv_in = nn.Conv2d(in_channels, width(image_size), 3, padding=1)
        sides = [2**i for i in range(image_size.bit_length() - 1, 2, -1)]  # image_size ... 8
        self.stages = nn.ModuleList(ResidualStage(width(side), width(side // 2)) for side in sides)
        self.conv_out = nn.Conv2d(max_channels, max_channels, 3, padding=1)
        self.hidden = nn.Linear(max_channels * 16, max_channels)
        self.logit = nn.Linear(max_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, image_size, image_size) to logits (B, 1)."""
        if tuple(images.shape[2:]) != (self.image_size, self.image_size):
            raise UserError(
                f"This discriminator was built for {self.image_size}x{self.image_size} images, "
                f"not {images.shape[2]}x{images.shape[3]}; set its image_size."
            )
        x = F.leaky_relu(self.conv_in(images), 0.2)  # B C H W
        for stage in self.stages:
            x = stage(x)  # B C' H/2 W/2
        x = F.leaky_relu(self.conv_out(x), 0.2)  # B C 4 4
        return self.logit(F.leaky_relu(self.hidden(x.flatten(1)), 0.2))
