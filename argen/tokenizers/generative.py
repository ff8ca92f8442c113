"""A decoder that draws what the codes do not tell (WeTok, arXiv 2508.05599)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from argen.layers.noise import Noise, SeededNoise
from argen.tokenizers.base import TokenizerOutput
from argen.tokenizers.cnn import CNNTokenizer, Decoder

USE = 1  # tells the decoder's draws from those of a stochastic encoder at the same position


class GenerativeDecoder(Decoder):
    """A `Decoder` that reads normal noise beside the codes; its adaptive norms read codes only.

    Two images of the same codes differ in their draws. Without noise it draws from torch's
    generator in training; in evaluation it makes one fixed draw, the same for every image.

    Args:
        in_channels: channels of the codes, and of the noise.
        options: as in `Decoder`.
    """

    def __init__(self, *, in_channels: int, **options: Any) -> None:
        super().__init__(in_channels=in_channels, **options)
        width = self.conv_in.out_channels
        self.conv_in = nn.Conv2d(2 * in_channels, width, 3, padding=1)

    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Map codes (B, in_channels, h, w) to images (B, 3, H, W)."""
        B, C, h, w = z.shape
        if noise is None and self.training:
            drawn = torch.randn_like(z)
        else:
            source = SeededNoise([0] * B, device=z.device) if noise is None else noise
            positions = torch.arange(h * w, device=z.device)
            drawn = source.normal(positions, (C,), use=USE).to(z.dtype)  # B hw C
            drawn = drawn.transpose(1, 2).reshape(B, C, h, w)
        return self.body(self.conv_in(torch.cat((self.norm_in(z), drawn), dim=1)), z)


class SecondStage(CNNTokenizer):
    """A `CNNTokenizer` of which only the decoder learns; encoder and quantiser are frozen.

    Args:
        options: as in `CNNTokenizer`.
    """

    frozen_parts = ("encoder", "quant_conv", "quantizer")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for part in self.frozen_parts:
            self.get_submodule(part).requires_grad_(False)

    def train(self, mode: bool = True) -> SecondStage:
        """Set the mode of the decoder; what is frozen stays in evaluation."""
        super().train(mode)
        self.encoder.eval()
        self.quantizer.eval()
        return self

    def forward(self, images: Tensor, *, noise: Noise | None = None) -> TokenizerOutput:
        """Reconstruct images (B, 3, H, W); there is no loss but theirs."""
        with torch.no_grad():
            z = self.latents(images)
            quantized = self.quantizer(z, noise=noise)
        codes = quantized.codes if self.quantizer.kind == "binary" else quantized.ids
        return TokenizerOutput(
            images=self.decode_latents(quantized.z, noise=noise), ids=codes, latents=z
        )


def from_plain(weights: Mapping[str, Tensor], *, prefix: str = "decoder.") -> dict[str, Tensor]:
    """Return a plain decoder's weights widened for a `GenerativeDecoder`.

    The noise half of the first convolution is zero, so that the generative decoder starts as the
    plain one; the published recipe then trains it with encoder and quantiser frozen.
    """
    key = f"{prefix}conv_in.weight"
    kernel = weights[key]
    return {**weights, key: torch.cat((kernel, torch.zeros_like(kernel)), dim=1)}
