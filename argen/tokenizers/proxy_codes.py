"""The 2-D tokenizer behind a two-stage 1-D one: teacher of its codes, then decoder of its pixels.

TiTok (arXiv 2406.07550) first learns to predict the codes of a frozen MaskGIT-VQGAN, then trains
that VQGAN's decoder on the soft codes it predicts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from argen.errors import UserError
from argen.tokenizers.cnn import Decoder, Encoder
from argen.tokenizers.quantizers.vq import VQ


class ProxyCodes(nn.Module):
    """Codebook and decoder of a 2-D tokenizer, and its encoder where codes must be made.

    Args:
        quantizer: the codebook.
        decoder: latent map (B, C, h, w) to image.
        encoder: image to latent map; only the first stage needs it.
        unit_range: the networks work on images in [0, 1], as MaskGIT-VQGAN does.
    """

    def __init__(
        self,
        *,
        quantizer: VQ,
        decoder: Decoder,
        encoder: Encoder | None = None,
        unit_range: bool = True,
    ) -> None:
        super().__init__()
        self.quantizer, self.decoder, self.encoder = quantizer, decoder, encoder
        self.unit_range = unit_range

    @property
    def codes(self) -> int:
        """Number of proxy codes."""
        return self.quantizer.vocab_sizes[0]

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """Return the codes (B, h, w) of images (B, 3, H, W) in [-1, 1]."""
        if self.encoder is None:
            raise UserError(
                "The first stage learns the codes of a 2-D tokenizer, but proxy.encoder is "
                "missing: give it, with the weights of that tokenizer."
            )
        z = self.encoder((images + 1) / 2 if self.unit_range else images)
        return self.quantizer(z.permute(0, 2, 3, 1)).ids

    def pixels(self, logits_BhwV: Tensor) -> Tensor:
        """Return images in [-1, 1] (not clamped) of the expected code under the logits."""
        # Rows and softmax are in float32 whatever the network's type.
        z = torch.softmax(logits_BhwV.float(), dim=-1) @ self.quantizer.rows().float()  # B h w C
        return self._decode(z)

    @torch.no_grad()
    def likeliest_pixels(self, logits_BhwV: Tensor) -> Tensor:
        """Return images of the likeliest code of each patch, without gradients."""
        return self._decode(self.quantizer.lookup(logits_BhwV.argmax(-1)))

    def _decode(self, z_BhwC: Tensor) -> Tensor:
        dtype = next(self.decoder.parameters()).dtype
        images = self.decoder(z_BhwC.permute(0, 3, 1, 2).to(dtype))
        return images * 2 - 1 if self.unit_range else images
