"""The KL autoencoder: the CNN of VQGAN with a Gaussian bottleneck (arXiv 2112.10752).

KL-16 of MAR (arXiv 2406.11838), VA-VAE (arXiv 2501.01423) and the f8 autoencoder of Stable
Diffusion differ in width, in where attention stands in encoder and decoder, and in how latents
are normalised.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from argen.errors import UserError
from argen.layers.noise import Noise
from argen.spec import CodeSpec, Segment
from argen.tokenizers.base import TokenizerOutput
from argen.tokenizers.cnn import CNNTokenizer, Decoder, Encoder
from argen.tokenizers.quantizers.gaussian import Gaussian


class KLTokenizer(CNNTokenizer):
    """Continuous codes: normalised latent pixels, or patches of them, in raster order.

    `encode` samples the posterior when it is given noise and returns its mean otherwise.

    Args:
        encoder: image to moments before the 1x1 projection.
        decoder: latent map to image.
        quantizer: the bottleneck, which keeps the latents' mean and std.
        image_size: side, or (H, W), that the spec describes; other sizes encode too.
        patch: side of the square of latent pixels that makes one code; its numbers stand in the
            order (channel, row, column).
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        decoder: Decoder,
        quantizer: Gaussian,
        image_size: int | tuple[int, int],
        patch: int = 1,
    ) -> None:
        super().__init__(
            encoder=encoder, decoder=decoder, quantizer=quantizer, image_size=image_size
        )
        self.quant_conv = nn.Conv2d(encoder.conv_out.out_channels, quantizer.in_dim, 1)
        self.patch = patch
        self.factor = self.factor * patch
        if any(side % self.factor for side in self.image_size):
            raise UserError(
                f"image_size {self.image_size[0]}x{self.image_size[1]} is not divisible by "
                f"{self.factor}: the network's factor times patch={patch}."
            )

    @property
    def bottleneck(self) -> Gaussian:
        """The quantiser, as what it is."""
        assert isinstance(self.quantizer, Gaussian)
        return self.quantizer

    @property
    def spec(self) -> CodeSpec:
        """One grid of (H / factor, W / factor) codes of C patch^2 numbers."""
        grid = (self.image_size[0] // self.factor, self.image_size[1] // self.factor)
        return CodeSpec("continuous", (Segment(grid, dim=self.quantizer.dim * self.patch**2),))

    def _encode(self, images: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Return codes (B, L, C patch^2): samples with noise, the posterior's mean without."""
        training = self.quantizer.training
        self.quantizer.eval()  # so that codes without noise are the mean in training too
        try:
            codes = self.quantizer.encode(self.latents(images), noise=noise)  # B h w C
        finally:
            self.quantizer.train(training)
        return patchify(codes.permute(0, 3, 1, 2), self.patch)

    @property
    def has_moments(self) -> bool:
        """Whether the bottleneck is variational."""
        return self.bottleneck.variational

    def moments(self, images: Tensor) -> Tensor:
        """Return means, then standard deviations of the codes, (B, L, 2 C patch^2)."""
        self.check_images(images)
        both = self.bottleneck.code_moments(self.latents(images))  # B h w C each
        return torch.cat([patchify(x.permute(0, 3, 1, 2), self.patch) for x in both], dim=-1)

    def _decode(self, codes: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Return images (B, 3, H, W) of codes (B, L, C patch^2)."""
        codes = unpatchify(codes, self.spec.grid, self.patch).permute(0, 2, 3, 1)
        return self.decode_latents(self.quantizer.lookup(codes), noise=noise)

    def forward(self, images: Tensor, *, noise: Noise | None = None) -> TokenizerOutput:
        """Reconstruct images; `latents` are the sampled latents (B, h, w, C), not normalised."""
        quantized = self.quantizer(self.latents(images), noise=noise)
        return TokenizerOutput(
            images=self.decode_latents(quantized.z, noise=noise),
            losses=quantized.losses,
            latents=quantized.z,
            metrics=quantized.metrics,
        )

    def encoder_last_layer(self) -> Tensor:
        """Return the weight that an alignment loss is balanced at."""
        return self.encoder.conv_out.weight

    @torch.no_grad()
    def measure(
        self, batches: Iterable[Tensor], *, per_channel: bool = True, centre: bool = True
    ) -> None:
        """Measure the latents' mean and std on images (B, 3, H, W); see `Gaussian.measure`."""
        device = self.encoder.conv_in.weight.device
        self.bottleneck.measure(
            (self.latents(images.to(device)) for images in batches),
            per_channel=per_channel,
            centre=centre,
        )


def patchify(x: Tensor, patch: int) -> Tensor:
    """Fold a map (B, C, H, W) into (B, (H / patch) (W / patch), C patch^2)."""
    B, C, H, W = x.shape
    x = x.reshape(B, C, H // patch, patch, W // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, C * patch**2)


def unpatchify(codes: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Undo `patchify` on codes of a grid (h, w): (B, C, h patch, w patch)."""
    x = codes.unflatten(2, (-1, patch, patch)).unflatten(1, grid)  # B h w C p p
    B, h, w, C = x.shape[:4]
    return x.permute(0, 3, 1, 4, 2, 5).reshape(B, C, h * patch, w * patch)
