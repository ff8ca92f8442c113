"""LlamaGen's VQ-16 (FoundationVision/LlamaGen, MIT), written anew from its description.

The layout stays contiguous here where argen trains channels-last. What else differs is told in
`vq_blocks` and `vq_quantizer`; the training step is in `vq_step`, its losses in `vq_losses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from argen.errors import UserError
from released.vq_blocks import Attention, Downsample, Residual, Upsample, middle, norm, swish
from released.vq_quantizer import CodebookLosses, Quantizer


class Network(nn.Module):
    """Encoder, quantiser and decoder."""

    def __init__(
        self,
        *,
        channels: int,
        encoder_multipliers: Sequence[int],
        decoder_multipliers: Sequence[int],
        blocks: int,
        latent: int,
        codes: int,
        code_dim: int,
        commitment: float,
        entropy: float,
        dropout: float,
    ) -> None:
        super().__init__()
        shape: dict[str, Any] = {"channels": channels, "latent": latent, "dropout": dropout}
        self.encoder = Encoder(multipliers=encoder_multipliers, blocks=blocks, **shape)
        self.decoder = Decoder(multipliers=decoder_multipliers, blocks=blocks + 1, **shape)
        self.quantize = Quantizer(codes, code_dim, commitment=commitment, entropy=entropy)
        self.quant_conv = nn.Conv2d(latent, code_dim, 1)
        self.post_quant_conv = nn.Conv2d(code_dim, latent, 1)

    @classmethod
    def like(cls, tokenizer: Any, *, commitment: float, entropy: float) -> Network:
        """Return one of the sizes of an argen CNNTokenizer that a configuration built.

        Args:
            tokenizer: its sizes are taken over.
            commitment: weight of the commitment loss.
            entropy: that of the entropy loss; it is computed whatever its weight.

        Raises:
            UserError: for sizes that the published network cannot have.
        """
        config = tokenizer.config
        encoder, decoder, quantizer = (config[k] for k in ("encoder", "decoder", "quantizer"))
        if decoder["channels"] != encoder["channels"] or decoder["blocks"] != encoder["blocks"] + 1:
            raise UserError(
                "The released decoder is as wide as its encoder and has one block a level more; "
                "change encoder and decoder together."
            )
        return cls(
            channels=encoder["channels"],
            encoder_multipliers=encoder["multipliers"],
            decoder_multipliers=decoder["multipliers"],
            blocks=encoder["blocks"],
            latent=encoder["out_channels"],
            codes=quantizer["codes"],
            code_dim=quantizer["dim"],
            commitment=commitment,
            entropy=entropy,
            dropout=encoder.get("dropout", 0.0),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, CodebookLosses]:
        """Return the reconstruction of images (B, 3, H, W), and the quantiser's losses."""
        quantized, losses = self.quantize(self.quant_conv(self.encoder(images)))
        return self.decoder(self.post_quant_conv(quantized)), losses

    def last_layer(self) -> Tensor:
        """Return the weight of the last convolution."""
        return self.decoder.conv_out.weight


class Encoder(nn.Module):
    """Images to a latent map, attention at the lowest resolution."""

    def __init__(
        self,
        *,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        latent: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        width, last = channels, len(multipliers) - 1
        for i, multiplier in enumerate(multipliers):
            level = Level(width, channels * multiplier, blocks, attend=i == last, dropout=dropout)
            width = channels * multiplier
            if i < last:
                level.downsample = Downsample(width)
            self.conv_blocks.append(level)
        self.mid = middle(width, dropout)
        self.norm_out = norm(width)
        self.conv_out = nn.Conv2d(width, latent, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, latent, h, w)."""
        h = self.conv_in(images)
        for level in self.conv_blocks:
            h = level(h)
        return self.conv_out(swish(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """A latent map to images; levels run from the lowest resolution to the highest."""

    def __init__(
        self,
        *,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        latent: int,
        dropout: float,
    ) -> None:
        super().__init__()
        last = len(multipliers) - 1
        width = channels * multipliers[last]
        self.conv_in = nn.Conv2d(latent, width, 3, padding=1)
        self.mid = middle(width, dropout)
        self.conv_blocks = nn.ModuleList()
        for i in reversed(range(last + 1)):
            narrower = channels * multipliers[i]
            level = Level(width, narrower, blocks, attend=i == last, dropout=dropout)
            width = narrower
            if i > 0:
                level.upsample = Upsample(width)
            self.conv_blocks.append(level)
        self.norm_out = norm(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """Map (B, latent, h, w) to (B, 3, H, W)."""
        h = self.mid(self.conv_in(latent))
        for level in self.conv_blocks:
            h = level(h)
        return self.conv_out(swish(self.norm_out(h)))


class Level(nn.Module):
    """Residual blocks at one resolution, each with its attention if any, then resampling."""

    downsample: nn.Module
    upsample: nn.Module

    def __init__(self, width: int, wider: int, blocks: int, *, attend: bool, dropout: float):
        super().__init__()
        self.res = nn.ModuleList(
            Residual(width if i == 0 else wider, wider, dropout) for i in range(blocks)
        )
        self.attn = nn.ModuleList(Attention(wider) for _ in range(blocks if attend else 0))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h', w')."""
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x
