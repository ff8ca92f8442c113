"""TiTok: an image as K tokens in a row instead of a grid, and the models grown from it.

One class serves TiTok (arXiv 2406.07550) in its two-stage and single-stage forms, with vector
quantisation or a Gaussian; TA-TiTok, whose decoder also reads text (arXiv 2501.07730); and
One-D-Piece, whose images can be cut after any number of tokens (arXiv 2501.10064).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from argen.errors import UserError
from argen.images.pixels import as_size
from argen.layers.noise import Noise
from argen.spec import CodeSpec, Segment
from argen.tokenizers.base import Tokenizer, TokenizerOutput
from argen.tokenizers.latent_vit import LatentDecoder, LatentEncoder, PixelHead, ProxyHead
from argen.tokenizers.proxy_codes import ProxyCodes
from argen.tokenizers.quantizers.base import Quantizer
from argen.tokenizers.quantizers.gaussian import Gaussian

TailDrop = Literal["none", "uniform", "powers"]


class TiTok(Tokenizer):
    """A latent encoder, a quantiser on its K tokens, and a latent decoder.

    What the decoder gives decides how it is trained. With pixels, everything is trained at once.
    With logits over proxy codes there are two stages: first all but `proxy` learns to predict the
    frozen proxy's codes (loss `proxy`); then, with `second_stage`, encoder and quantiser stand
    still while the decoder and the proxy's own decoder learn to give pixels.

    Args:
        encoder: image to K vectors.
        decoder: K vectors to an image or to proxy-code logits.
        quantizer: works on each of the K vectors.
        image_size: side, or (H, W), of the only size it reads; that of encoder and decoder.
        proxy: the 2-D tokenizer whose codes the decoder predicts.
        second_stage: train pixels through the proxy, see above.
        any_length: decode any prefix of the K tokens.
        emit: how many leading tokens are codes, where not all K, with `any_length`: a shorter
            sequence for generators, at the price of detail.
        tail_drop: in training, keep a random number of leading tokens, one number a batch:
            `uniform` in 1..K, or `powers`: 1, 2, 4, ... and K; needs `any_length`.
    """

    spatial = False

    def __init__(
        self,
        *,
        encoder: LatentEncoder,
        decoder: LatentDecoder,
        quantizer: Quantizer,
        image_size: int | tuple[int, int],
        proxy: ProxyCodes | None = None,
        second_stage: bool = False,
        any_length: bool = False,
        emit: int | None = None,
        tail_drop: TailDrop = "none",
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.quantizer = encoder, decoder, quantizer
        self.proxy, self.second_stage = proxy, second_stage
        self.any_length, self.tail_drop = any_length, tail_drop
        self.emit = encoder.latents if emit is None else emit
        self.image_size, self.factor = as_size(image_size), encoder.factor
        self._check_parts()
        self.frozen_parts = () if proxy is None else ("proxy",)
        if second_stage:
            # The proxy's decoder goes on learning, but from the teacher's.
            self.frozen_parts = ("encoder", "quantizer", "proxy")
            encoder.requires_grad_(False)
            quantizer.requires_grad_(False)
        if proxy is not None:
            proxy.requires_grad_(second_stage)
            if proxy.encoder is not None:
                proxy.encoder.requires_grad_(False)

    def _check_parts(self) -> None:
        head, proxy = self.decoder.head, self.proxy
        if self.image_size != self.encoder.image_size:
            raise UserError(
                f"image_size {self.image_size} and encoder.image_size {self.encoder.image_size} "
                "differ; give both the same."
            )
        widths = (self.encoder.out.out_features, self.decoder.embed.in_features)
        if widths != (self.quantizer.in_dim, self.quantizer.dim):
            raise UserError(
                f"encoder.out_channels={widths[0]} and decoder.in_channels={widths[1]} do not fit "
                f"this quantiser, which takes {self.quantizer.in_dim} numbers a token and gives "
                f"{self.quantizer.dim}."
            )
        if self.encoder.latents != self.decoder.latent_positions.shape[0]:
            raise UserError("encoder.latents and decoder.latents differ; give both the same.")
        if self.second_stage and (proxy is None or isinstance(head, PixelHead)):
            raise UserError(
                "second_stage trains pixels through proxy codes: it needs proxy= and a decoder "
                "with proxy_codes set."
            )
        if proxy is not None:
            found = head.codes if isinstance(head, ProxyHead) else 0
            if found != proxy.codes:
                raise UserError(
                    f"decoder.proxy_codes is {found}, but the proxy has {proxy.codes} codes."
                )
        if self.tail_drop not in ("none", "uniform", "powers"):
            raise UserError(f"Unknown tail_drop {self.tail_drop!r}; use none, uniform or powers.")
        if self.tail_drop != "none" and not self.any_length:
            raise UserError("tail_drop trains for shorter codes: set any_length=true with it.")
        K = self.encoder.latents
        if not 1 <= self.emit <= K or (self.emit < K and not self.any_length):
            raise UserError(
                f"emit={self.emit} must lie in 1..{K}, and be {K} unless any_length is true."
            )

    def train(self, mode: bool = True) -> TiTok:
        """Set training mode, except for the parts that are frozen."""
        super().train(mode)
        if self.second_stage:
            self.encoder.eval()
            self.quantizer.eval()
        elif self.proxy is not None:
            self.proxy.eval()
        return self

    @property
    def spec(self) -> CodeSpec:
        """One row of `emit` codes."""
        return self._spec(self.emit)

    def _spec(self, length: int) -> CodeSpec:
        segment: Segment = self.quantizer.segment((1, length))
        return CodeSpec(self.quantizer.kind, (segment,))

    def check_images(self, images: Tensor) -> None:
        """Raise `UserError` unless `images` have the one size this tokenizer reads."""
        super().check_images(images)
        if tuple(images.shape[2:]) != self.image_size:
            height, width = self.image_size
            raise UserError(
                f"Images are {images.shape[2]}x{images.shape[3]}, but this tokenizer's positions "
                f"are learned for {height}x{width} alone; resize the images to that."
            )

    def latents(self, images: Tensor) -> Tensor:
        """Return what is quantised, (B, K, encoder.out_channels), of images in [-1, 1]."""
        return self.encoder((images + 1) / 2)

    def _encode(self, images: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Return ids (B, K), or floats (B, K, C), or `emit` of them."""
        return self.quantizer.encode(self.latents(images), noise=noise)[:, : self.emit]

    @property
    def has_moments(self) -> bool:
        """Whether the bottleneck is variational."""
        return isinstance(self.quantizer, Gaussian) and self.quantizer.variational

    def moments(self, images: Tensor) -> Tensor:
        """Return means, then standard deviations of the codes, (B, K, 2C)."""
        self.check_images(images)
        if not isinstance(self.quantizer, Gaussian):
            return super().moments(images)
        both = self.quantizer.code_moments(self.latents(images))
        return torch.cat(both, dim=-1)[:, : self.emit]

    @property
    def decode_options(self) -> tuple[str, ...]:
        """`length` where any length decodes, `text` where the decoder reads it."""
        length = ("length",) if self.any_length else ()
        return (*length, "text") if self.decoder.text_proj is not None else length

    def _decode(
        self, codes: Tensor, *, length: int | None = None, text: Tensor | None = None
    ) -> Tensor:
        """Return images (B, 3, H, W).

        Args:
            codes: as `encode` gives them, or fewer of them with `any_length`.
            length: use only this many leading codes, with `any_length`.
            text: features (B, T, F) for a text-aware decoder.
        """
        return self.decode_latents(self.quantizer.lookup(codes[:, :length]), text=text)

    @property
    def preview_lengths(self) -> list[int]:
        """All of them, with `any_length`."""
        return list(range(1, self.emit + 1)) if self.any_length else []

    def check_codes(self, codes: Tensor, **options: Any) -> None:
        """Raise `UserError` unless these are all codes or, with `any_length`, the first of them."""
        if not self.any_length:
            self.spec.check(codes)
            return
        K, length = self.encoder.latents, options.get("length")
        given = codes.shape[1] if codes.ndim > 1 else 0
        self._spec(min(max(given, 1), K)).check(codes)
        if length is not None and not 1 <= length <= given:
            raise UserError(f"length={length} must lie in 1..{given}, the number of codes given.")

    def decode_latents(self, z: Tensor, *, text: Tensor | None = None) -> Tensor:
        """Return images in [-1, 1] (not clamped) of quantised vectors (B, n, C)."""
        decoded = self.decoder(z, text)
        if isinstance(self.decoder.head, PixelHead):
            return decoded * 2 - 1
        proxy = self._require_proxy()
        return proxy.pixels(decoded) if self.second_stage else proxy.likeliest_pixels(decoded)

    def _require_proxy(self) -> ProxyCodes:
        if self.proxy is None:
            raise UserError(
                "This is a first-stage model: its decoder gives logits over the codes of a 2-D "
                "tokenizer. Give that tokenizer as proxy= to see pixels, or load a second stage."
            )
        return self.proxy

    def forward(
        self, images: Tensor, *, noise: Noise | None = None, text: Tensor | None = None
    ) -> TokenizerOutput:
        """Reconstruct images (B, 3, H, W).

        In the first of two stages the gradient flows through the loss `proxy`, the mean cross
        entropy in nats, and the images are only to look at.

        Args:
            images: in [-1, 1].
            noise: draws of the quantiser and of the number of tokens kept; fresh ones when None.
            text: features (B, T, F) for a text-aware decoder.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.second_stage):
            z = self.latents(images)
            quantized = self.quantizer(z, noise=noise)
        losses = {} if self.second_stage else dict(quantized.losses)
        kept = quantized.z[:, : self.keep(noise)]
        if isinstance(self.decoder.head, PixelHead) or self.second_stage:
            output = self.decode_latents(kept, text=text)
        else:
            proxy, logits_BhwV = self._require_proxy(), self.decoder(kept, text)
            losses["proxy"] = proxy_loss(logits_BhwV, proxy.targets(images))
            output = proxy.likeliest_pixels(logits_BhwV)
        return TokenizerOutput(
            images=output,
            losses=losses,
            ids=quantized.ids,
            latents=z,
            metrics=quantized.metrics,
        )

    def keep(self, noise: Noise | None) -> int:
        """Draw how many leading tokens this training pass keeps: one number for the batch."""
        K = self.encoder.latents
        if self.tail_drop == "none" or not self.training:
            return K
        if noise is None:
            share = float(torch.rand(()))
        else:
            share = float(noise.uniform(torch.zeros(1, dtype=torch.long), use=1).flatten()[0])
        if self.tail_drop == "uniform":
            return 1 + min(K - 1, int(share * K))
        lengths = [2**i for i in range(K.bit_length()) if 2**i < K] + [K]
        return lengths[min(len(lengths) - 1, int(share * len(lengths)))]

    def last_layer(self) -> Tensor | None:
        """Return the weight of the last layer that gives pixels; None in a first stage."""
        head = self.decoder.head
        if isinstance(head, PixelHead):
            return head.conv.weight
        return self.proxy.decoder.conv_out.weight if self.second_stage and self.proxy else None

    def encoder_last_layer(self) -> Tensor | None:
        """Return the weight of the encoder's last layer; None where it is frozen."""
        return None if self.second_stage else self.encoder.out.weight


def proxy_loss(logits_BhwV: Tensor, ids_Bhw: Tensor) -> Tensor:
    """Return the mean cross entropy in nats of the proxy codes."""
    return F.cross_entropy(logits_BhwV.flatten(0, 2).float(), ids_Bhw.flatten())
