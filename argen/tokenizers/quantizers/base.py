"""The quantiser contract: one return type for every way of turning vectors into codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError
from argen.layers.noise import Noise
from argen.spec import Kind, Segment


@dataclass
class Quantized:
    """What a quantiser returns.

    Attributes:
        z: quantised vectors, same shape as the input, with gradients passed straight through.
        ids: long (...,) or (..., G); None when codes cannot be enumerated.
        losses: named scalars, unweighted; the training recipe weighs them.
        codes: raw codes where they are not ids (bits, continuous latents).
        metrics: named scalars to log, detached.
    """

    z: Tensor
    ids: Tensor | None
    losses: dict[str, Tensor] = field(default_factory=dict)
    codes: Tensor | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Quantizer(nn.Module, ABC):
    """Quantises vectors on the last axis, (..., C); layouts are the tokenizer's affair.

    Attributes:
        kind: whether codes are ids (`discrete`), bit vectors (`binary`) or floats (`continuous`).
        dim: width C of the vectors it takes and gives.
        vocab_sizes: one entry per sub-token of an id; empty when codes cannot be enumerated.
        bits: length of a binary code, else 0.
        reads_weights: it uses the weights of its layers on its own, so they stay as they are.
    """

    reads_weights = True
    kind: Kind = "discrete"
    dim: int
    vocab_sizes: tuple[int, ...] = ()
    bits: int = 0

    @property
    def in_dim(self) -> int:
        """Width of the vectors `forward` takes, where it is not `dim` (a mean and a variance)."""
        return self.dim

    @abstractmethod
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise `z` (B, ..., C); computed in float32 whatever the autocast type.

        Args:
            z: the vectors.
            noise: draws of a stochastic quantiser, keyed by position; without it such a quantiser
                draws from torch's generator in training and is deterministic in evaluation.
                Others have no use for it.
        """

    def encode(self, z: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Return the codes alone: ids (...) or (..., G), bits (..., bits) or floats (..., C)."""
        quantized = self(z, noise=noise)
        codes = quantized.codes if quantized.ids is None else quantized.ids
        assert codes is not None
        return codes

    def segment(self, shape: tuple[int, int]) -> Segment:
        """Describe a grid of this quantiser's codes."""
        return Segment(shape, vocab_sizes=self.vocab_sizes, bits=self.bits, dim=self.dim)

    @abstractmethod
    def lookup(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., C) of ids (...,) or (..., G), or of bits or float codes."""


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """Return `quantized` in value with the gradient of `z` (arXiv 1308.3432)."""
    return z + (quantized - z).detach()


def rotate(z: Tensor, quantized: Tensor) -> Tensor:
    """Return `quantized` in value; gradients are turned and scaled as `z` is turned into it.

    The rotation trick (arXiv 2410.06424): the gradient that reaches z keeps its angle to z.
    """
    z_norm = z.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    q_norm = quantized.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    u, v = (z / z_norm).detach(), (quantized / q_norm).detach()
    w = F.normalize(u + v, dim=-1, eps=1e-6)
    along_w, along_u = (z * w).sum(-1, keepdim=True), (z * u).sum(-1, keepdim=True)
    turned = (z - 2 * along_w * w + 2 * along_u * v) * (q_norm / z_norm).detach()
    return turned + (quantized - turned).detach()


PASSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "straight_through": straight_through,
    "rotation": rotate,
}


def gradient_pass(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return `straight_through` or `rotate` by name: (z, quantized) -> quantized with gradients."""
    if name not in PASSES:
        raise UserError(f"Unknown gradient {name!r}; use {' or '.join(PASSES)}.")
    return PASSES[name]


def nearest_code(z_NC: Tensor, codebook_KC: Tensor, *, max_elements: int = 1 << 25) -> Tensor:
    """Return the row of the codebook nearest to each vector, long (N,).

    Works in chunks of N so that the distance matrix never holds more than `max_elements` numbers,
    and never builds an N x K x C tensor.
    """
    squares_K = codebook_KC.square().sum(-1)
    rows = max(1, max_elements // codebook_KC.shape[0])
    found = [
        torch.addmm(squares_K, chunk, codebook_KC.T, beta=1.0, alpha=-2.0)
        .add_(chunk.square().sum(-1, keepdim=True))
        .argmin(-1)
        for chunk in z_NC.detach().split(rows)
    ]
    return torch.cat(found) if found else z_NC.new_zeros(0, dtype=torch.long)


def best_product(z_NC: Tensor, codebook_KC: Tensor, *, max_elements: int = 1 << 25) -> Tensor:
    """Return the row with the largest inner product with each vector, long (N,), in chunks."""
    rows = max(1, max_elements // codebook_KC.shape[0])
    found = [(chunk @ codebook_KC.T).argmax(-1) for chunk in z_NC.detach().split(rows)]
    return torch.cat(found) if found else z_NC.new_zeros(0, dtype=torch.long)
