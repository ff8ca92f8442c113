"""A quantiser between two linear maps, for latents of another width than its codes."""

from __future__ import annotations

from torch import Tensor, nn

from argen.layers.noise import Noise
from argen.tokenizers.quantizers.base import Quantized, Quantizer


class Projected(Quantizer):
    """Project to the quantiser's width, quantise, project back.

    Args:
        quantizer: what quantises in between.
        dim: width C of the vectors taken and given.
        bias: biases in both maps.
    """

    def __init__(self, quantizer: Quantizer, dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.quantizer, self.dim = quantizer, dim
        self.kind, self.bits = quantizer.kind, quantizer.bits
        self.vocab_sizes = quantizer.vocab_sizes
        self.into = nn.Linear(dim, quantizer.dim, bias=bias)
        self.back = nn.Linear(quantizer.dim, dim, bias=bias)

    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise `z` (..., C)."""
        found = self.quantizer(self.into(z), noise=noise)
        return Quantized(self.back(found.z), found.ids, found.losses, found.codes)

    def encode(self, z: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Return the codes of vectors (..., C)."""
        return self.quantizer.encode(self.into(z), noise=noise)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., C) of ids."""
        return self.back(self.quantizer.lookup(ids))
