"""The 2-D convolutional autoencoder with a quantiser in its middle.

One configurable network for the VQGAN line (taming arXiv 2012.09841, LlamaGen arXiv 2406.06525,
MaskGIT arXiv 2202.04200): they differ in where attention stands, how levels are resampled, which
convolutions have biases, and in the quantiser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError
from argen.images.pixels import as_size
from argen.layers.adaptive_norm import AdaptiveGroupNorm
from argen.layers.conv import Downsample, Upsample, group_norm
from argen.layers.levels import Level, middle
from argen.layers.noise import Noise
from argen.spec import CodeSpec
from argen.tokenizers.base import Tokenizer, TokenizerOutput
from argen.tokenizers.causal_prior import CausalPrior
from argen.tokenizers.quantizers.base import Quantizer


class Encoder(nn.Module):
    """Image to latent map, from high to low resolution.

    Args:
        channels: base width.
        multipliers: width multiplier of each level; there are len - 1 halvings.
        blocks: residual blocks a level.
        out_channels: channels of the latent map.
        in_channels: channels of the image.
        attention_levels: levels (0 is the highest resolution, -1 the lowest) with attention.
        middle_attention: attention between the middle blocks.
        middle_blocks: residual blocks in the middle.
        downsample: see `Downsample`.
        bias: biases of the residual blocks and of the first convolution.
        shortcut: see `ResBlock`.
        out_kernel: kernel of the last convolution, 3 or 1.
        out_activation: SiLU between the last norm and convolution.
        dropout: dropout in the residual blocks.
        norm_groups: groups of the norms.
        patch: fold patch x patch pixels into channels first, which saves the costly work at full
            resolution.
    """

    def __init__(
        self,
        *,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        out_channels: int,
        in_channels: int = 3,
        attention_levels: Sequence[int] = (),
        middle_attention: bool = True,
        middle_blocks: int = 2,
        downsample: str = "conv_asymmetric",
        bias: bool = True,
        shortcut: str = "input",
        out_kernel: int = 3,
        out_activation: bool = True,
        dropout: float = 0.0,
        norm_groups: int = 32,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.factor = patch * 2 ** (len(multipliers) - 1)
        count = len(multipliers)
        with_attention = {level % count for level in attention_levels}
        style: dict[str, Any] = {"bias": bias, "dropout": dropout, "norm_groups": norm_groups}
        self.conv_in = nn.Conv2d(in_channels * patch**2, channels, 3, padding=1, bias=bias)
        levels, width = [], channels
        for i, multiplier in enumerate(multipliers):
            wider = channels * multiplier
            level = Level(
                width,
                wider,
                blocks=blocks,
                attention=i in with_attention,
                resample=Downsample(wider, kind=downsample) if i < count - 1 else None,
                shortcut=shortcut,
                **style,
            )
            levels.append(level)
            width = wider
        self.levels = nn.ModuleList(levels)
        self.middle = middle(width, blocks=middle_blocks, attention=middle_attention, **style)
        self.norm_out = group_norm(width, groups=norm_groups)
        self.act_out = nn.SiLU() if out_activation else nn.Identity()
        self.conv_out = nn.Conv2d(width, out_channels, out_kernel, padding=out_kernel // 2)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to (B, out_channels, h, w)."""
        x = F.pixel_unshuffle(images, self.patch) if self.patch > 1 else images
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x)
        return self.conv_out(self.act_out(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """Latent map to image, from low to high resolution; arguments as in `Encoder`.

    Args:
        channels: base width.
        multipliers: width multiplier of each level, from the HIGHEST resolution down, as in the
            encoder; levels run in the reverse order.
        blocks: residual blocks a level.
        in_channels: channels of the latent map.
        out_channels: channels of the image.
        attention_levels: levels with attention, numbered as `multipliers`.
        middle_attention: attention between the middle blocks.
        middle_blocks: residual blocks in the middle.
        upsample: see `Upsample`.
        bias: biases of the residual blocks.
        shortcut: see `ResBlock`.
        in_norm: a group norm on the latent map itself.
        adaptive_norm: before each level, a norm scaled and shifted by the latent map's statistics.
        out_activation: SiLU between the last norm and convolution.
        dropout: dropout in the residual blocks.
        norm_groups: groups of the norms.
        patch: unfold channels into patch x patch pixels last; see `Encoder`.
    """

    def __init__(
        self,
        *,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        in_channels: int,
        out_channels: int = 3,
        attention_levels: Sequence[int] = (),
        middle_attention: bool = True,
        middle_blocks: int = 2,
        upsample: str = "nearest",
        bias: bool = True,
        shortcut: str = "input",
        in_norm: bool = False,
        adaptive_norm: bool = False,
        out_activation: bool = True,
        dropout: float = 0.0,
        norm_groups: int = 32,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.patch = patch
        count = len(multipliers)
        with_attention = {level % count for level in attention_levels}
        style: dict[str, Any] = {"bias": bias, "dropout": dropout, "norm_groups": norm_groups}
        width = channels * multipliers[-1]
        self.in_channels = in_channels
        self.norm_in = group_norm(in_channels, groups=norm_groups) if in_norm else nn.Identity()
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.middle = middle(width, blocks=middle_blocks, attention=middle_attention, **style)
        levels, adaptive = [], []
        for i in reversed(range(count)):
            if adaptive_norm:
                adaptive.append(AdaptiveGroupNorm(width, in_channels, groups=norm_groups))
            narrower = channels * multipliers[i]
            level = Level(
                width,
                narrower,
                blocks=blocks,
                attention=i in with_attention,
                resample=Upsample(narrower, kind=upsample) if i else None,
                shortcut=shortcut,
                **style,
            )
            levels.append(level)
            width = narrower
        self.levels, self.adaptive = nn.ModuleList(levels), nn.ModuleList(adaptive)
        self.norm_out = group_norm(width, groups=norm_groups)
        self.act_out = nn.SiLU() if out_activation else nn.Identity()
        self.conv_out = nn.Conv2d(width, out_channels * patch**2, 3, padding=1)

    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Map (B, in_channels, h, w) to images (B, 3, H, W); a plain decoder needs no noise."""
        return self.body(self.conv_in(self.norm_in(z)), z)

    def body(self, x: Tensor, z: Tensor) -> Tensor:
        """Run everything after the first convolution; `z` is what adaptive norms read."""
        x = self.middle(x)
        for i, level in enumerate(self.levels):
            x = level(self.adaptive[i](x, z) if len(self.adaptive) else x)
        y = self.conv_out(self.act_out(self.norm_out(x)))
        return F.pixel_shuffle(y, self.patch) if self.patch > 1 else y


class CNNTokenizer(Tokenizer):
    """Encoder, 1x1 projection, quantiser on every pixel of the latent map, and back.

    Args:
        encoder: image to latent map.
        decoder: latent map to image.
        quantizer: works on the channels of each latent pixel.
        image_size: side, or (H, W), that the spec describes; other sizes encode too.
        projection: put 1x1 convolutions between the networks and the quantiser; needed when the
            latent width is not the quantiser's.
        unit_range: the networks themselves work on images in [0, 1] (MaskGIT's checkpoints); the
            tokenizer still takes and gives [-1, 1].
        prior: gives the loss `prior`, which makes the codes easier to model.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        decoder: Decoder,
        quantizer: Quantizer,
        image_size: int | tuple[int, int],
        projection: bool = True,
        unit_range: bool = False,
        prior: CausalPrior | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.quantizer = encoder, decoder, quantizer
        self.prior = prior
        self.unit_range = unit_range
        self.image_size = as_size(image_size)
        self.factor = encoder.factor
        latent, wanted = encoder.conv_out.out_channels, decoder.in_channels
        if not projection and not latent == quantizer.dim == wanted:
            raise UserError(
                f"Without projection the latent width {latent}, the quantiser's {quantizer.dim} "
                f"and the decoder's {wanted} must agree; set projection=true."
            )
        self.quant_conv = nn.Conv2d(latent, quantizer.dim, 1) if projection else nn.Identity()
        self.post_quant_conv = nn.Conv2d(quantizer.dim, wanted, 1) if projection else nn.Identity()
        if any(side % self.factor for side in self.image_size):
            raise UserError(
                f"image_size {self.image_size[0]}x{self.image_size[1]} is not divisible by the "
                f"tokenizer's factor {self.factor}."
            )

    @property
    def spec(self) -> CodeSpec:
        """One grid of (H / factor, W / factor) codes."""
        grid = (self.image_size[0] // self.factor, self.image_size[1] // self.factor)
        return CodeSpec(self.quantizer.kind, (self.quantizer.segment(grid),))

    def latents(self, images: Tensor) -> Tensor:
        """Return the latent vectors (B, h, w, C) that are quantised."""
        if self.unit_range:
            images = (images + 1) / 2
        return self.quant_conv(self.encoder(images)).permute(0, 2, 3, 1)

    def _encode(self, images: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Return codes in raster order: ids (B, h * w) or (B, h * w, G), bits or floats."""
        return self.quantizer.encode(self.latents(images), noise=noise).flatten(1, 2)

    def _decode(self, codes: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Return images (B, 3, H, W) of codes that follow `spec`."""
        z = self.quantizer.lookup(codes.unflatten(1, self.spec.grid))
        return self.decode_latents(z, noise=noise)

    def decode_latents(self, z: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Return images of quantised vectors (B, h, w, C)."""
        z = z.permute(0, 3, 1, 2).to(self.decoder.conv_in.weight.dtype)
        images = self.decoder(self.post_quant_conv(z), noise=noise)
        return images * 2 - 1 if self.unit_range else images

    def forward(self, images: Tensor, *, noise: Noise | None = None) -> TokenizerOutput:
        """Reconstruct images (B, 3, H, W)."""
        z = self.latents(images)
        quantized = self.quantizer(z, noise=noise)
        losses = dict(quantized.losses)
        if self.prior is not None:
            losses["prior"] = self.prior(quantized.z)
        return TokenizerOutput(
            images=self.decode_latents(quantized.z, noise=noise),
            losses=losses,
            ids=quantized.codes if self.quantizer.kind == "binary" else quantized.ids,
            latents=z,
        )

    def last_layer(self) -> Tensor:
        """Return the weight of the last convolution."""
        return self.decoder.conv_out.weight
