"""Bernoulli codes: bits drawn with learned probabilities (binary latents, arXiv 2304.04820)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.tokenizers.quantizers.base import Quantized, Quantizer, straight_through


def indecision(probs: Tensor) -> Tensor:
    """Return the mean variance p (1 - p) of the bits, a scalar in [0, 1/4]."""
    return (probs * (1 - probs)).mean()


class Bernoulli(Quantizer):
    """A vector gives the probabilities of its bits; the bits give a sum of learned vectors.

    Codes are bits in {0, 1}. In training they are drawn, with the gradient passed straight to the
    probabilities; in evaluation they are drawn where noise is given, as the published model does
    by default, and are the likelier value otherwise. The loss `indecision` is the mean p (1 - p).

    Args:
        bits: bits a position.
        dim: width C of the vectors taken and given.
        signed: a bit adds or subtracts its vector, with tanh in place of the sigmoid; otherwise a
            zero adds nothing.
        deterministic: never draw, not even in training.
    """

    kind = "binary"

    def __init__(
        self, bits: int, dim: int, *, signed: bool = False, deterministic: bool = False
    ) -> None:
        super().__init__()
        self.bits, self.dim = bits, dim
        self.signed, self.deterministic = signed, deterministic
        self.proj = nn.Linear(dim, bits)
        self.embed = nn.Embedding(bits, dim)

    def activations(self, z: Tensor) -> Tensor:
        """Return what a bit's straight-through gradient passes to: p, or 2p - 1 if signed."""
        logits = F.linear(z, self.proj.weight.float(), self.proj.bias.float())
        return torch.tanh(logits) if self.signed else torch.sigmoid(logits)

    def probabilities(self, z: Tensor) -> Tensor:
        """Return the probability of each bit being one, (..., bits)."""
        activations = self.activations(z)
        return activations * 0.5 + 0.5 if self.signed else activations

    def values(self, codes: Tensor) -> Tensor:
        """Return the factors (..., bits) that bits in {0, 1} put on their vectors."""
        factors = codes.float()
        return factors * 2 - 1 if self.signed else factors

    def draw(self, probs: Tensor, *, noise: Noise | None) -> Tensor:
        """Return bits (B, ..., bits), long."""
        if self.deterministic or (noise is None and not self.training):
            return (probs > 0.5).long()
        if noise is None:
            return torch.bernoulli(probs).long()
        B, *grid, bits = probs.shape
        positions = torch.arange(probs[0].numel() // bits, device=probs.device)
        uniform = noise.uniform(positions, (bits,)).view(B, *grid, bits)
        return (uniform < probs).long()

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise `z` (B, ..., C)."""
        activations = self.activations(z)
        probs = activations * 0.5 + 0.5 if self.signed else activations
        codes = self.draw(probs.detach(), noise=noise)
        factors = straight_through(activations, self.values(codes))
        return Quantized(
            z=factors @ self.embed.weight.float(),
            ids=None,
            losses={"indecision": indecision(probs)},
            codes=codes,
        )

    @float32
    def encode(self, z: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Return bits (B, ..., bits)."""
        return self.draw(self.probabilities(z), noise=noise)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., C) of bits (..., bits)."""
        return self.values(ids) @ self.embed.weight.float()
