"""VAR's tokenizer: a 2-D convolutional autoencoder around a pyramid of codes (arXiv 2404.02905)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from argen.errors import UserError
from argen.images.pixels import as_size
from argen.layers.noise import Noise
from argen.spec import CodeSpec
from argen.tokenizers.base import Tokenizer, TokenizerOutput
from argen.tokenizers.cnn import Decoder, Encoder
from argen.tokenizers.quantizers.multiscale import MultiScaleVQ, Scales, as_scales


class MultiScaleTokenizer(Tokenizer):
    """Encoder, convolution, pyramid of codes, convolution, decoder.

    The codes of all scales stand one after another, coarse first, so any prefix of whole scales
    decodes to a preview of the image.

    Args:
        encoder: image to latent map.
        decoder: latent map to image.
        quantizer: the pyramid; its last scale is the latent map's grid.
        image_size: side, or (H, W); must be the last scale times the encoder's factor.
        kernel: side of the convolutions between the networks and the quantiser.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        decoder: Decoder,
        quantizer: MultiScaleVQ,
        image_size: int | tuple[int, int],
        kernel: int = 3,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.quantizer = encoder, decoder, quantizer
        self.image_size = as_size(image_size)
        self.factor = encoder.factor
        (h, w), (H, W) = quantizer.scales[-1], self.image_size
        if (h * self.factor, w * self.factor) != (H, W):
            raise UserError(
                f"The scales end at {h}x{w}, which is an image of {h * self.factor}x"
                f"{w * self.factor} for this encoder, not image_size {H}x{W}: change one of them."
            )
        latent, wanted = encoder.conv_out.out_channels, decoder.conv_in.in_channels
        padding = kernel // 2
        self.quant_conv = nn.Conv2d(latent, quantizer.dim, kernel, padding=padding)
        self.post_quant_conv = nn.Conv2d(quantizer.dim, wanted, kernel, padding=padding)

    @property
    def spec(self) -> CodeSpec:
        """One segment a scale."""
        return CodeSpec("discrete", tuple(self.quantizer.segment(s) for s in self.quantizer.scales))

    def latents(self, images: Tensor) -> Tensor:
        """Return the latent map (B, h, w, C) that is quantised."""
        return self.quant_conv(self.encoder(images)).permute(0, 2, 3, 1)

    def _encode(
        self, images: Tensor, *, scales: Sequence[int | Sequence[int]] | None = None
    ) -> Tensor:
        """Return ids (B, L), scale after scale, each in raster order.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            scales: another pyramid, for images of another size or shape than `image_size`.
        """
        return self.quantizer.encode(self.latents(images), scales=_given(scales))

    def _decode(
        self,
        codes: Tensor,
        *,
        length: int | None = None,
        scales: Sequence[int | Sequence[int]] | None = None,
    ) -> Tensor:
        """Return images (B, 3, H, W).

        Args:
            codes: ids (B, L) as `encode` gives them.
            length: decode only this many leading codes, a preview; they must be whole scales,
                see `preview_lengths`.
            scales: the pyramid that `codes` were encoded with, if not the tokenizer's own.
        """
        maps = self.quantizer.maps(codes[:, :length], _given(scales) or self.quantizer.scales)
        return self.decode_latents(maps[-1].permute(0, 2, 3, 1))

    def check_codes(self, codes: Tensor, **options: Any) -> None:
        """Raise `UserError` unless `codes` are those of the pyramid that is meant."""
        pyramid = _given(options.get("scales")) or self.quantizer.scales
        CodeSpec("discrete", tuple(self.quantizer.segment(s) for s in pyramid)).check(codes)

    @property
    def preview_lengths(self) -> list[int]:
        """Lengths that `decode` takes: the codes up to each scale."""
        return self.quantizer.ends()

    def decode_latents(self, z: Tensor) -> Tensor:
        """Return images of latent maps (B, h, w, C)."""
        z = z.permute(0, 3, 1, 2).to(self.post_quant_conv.weight.dtype)
        return self.decoder(self.post_quant_conv(z))

    def forward(self, images: Tensor, *, noise: Noise | None = None) -> TokenizerOutput:
        """Reconstruct images (B, 3, H, W); see `MultiScaleVQ.forward` for losses and metrics."""
        z = self.latents(images)
        quantized = self.quantizer(z)
        return TokenizerOutput(
            images=self.decode_latents(quantized.z),
            losses=quantized.losses,
            ids=quantized.ids,
            latents=z,
            metrics=quantized.metrics,
        )

    def last_layer(self) -> Tensor:
        """Return the weight of the last convolution."""
        return self.decoder.conv_out.weight


def _given(scales: Sequence[int | Sequence[int]] | None) -> Scales | None:
    return None if scales is None else as_scales(scales)
