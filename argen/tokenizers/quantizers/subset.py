"""Codes renumbered so that only those in use remain.

A large codebook often uses a fraction of its rows. Given the list of those rows, ids become places
in the list, and a generator learns a vocabulary of that size (taming-transformers' `remap`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from argen.errors import UserError
from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.tokenizers.quantizers.base import Quantized, Quantizer


class CodeSubset(nn.Module):
    """A list of the codes in use, kept with the weights, and the way there and back.

    Args:
        used: how many codes the list holds; the list itself is loaded, and is 0, 1, ... until then.
        unknown: what a code outside the list becomes: `random`, `extra` (an id of its own at the
            end, decoded as the first of the list), or a fixed id.
    """

    def __init__(self, used: int, *, unknown: str | int = "random") -> None:
        super().__init__()
        fixed = isinstance(unknown, int) and 0 <= unknown < used
        if unknown not in ("random", "extra") and not fixed:
            raise UserError(
                f"unknown={unknown!r} is neither random nor extra nor an id in [0, {used - 1}]."
            )
        self.unknown = unknown
        self.size = used + (unknown == "extra")
        self.used: Tensor
        self.register_buffer("used", torch.arange(used))

    def compress(self, ids: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Map codes (B, ...) to places in the list.

        Args:
            ids: codes of the whole codebook.
            noise: draws the place of unknown codes, keyed by position; without it a code's
                substitute follows from the code alone.
        """
        order = self.used.argsort(stable=True)
        found = torch.searchsorted(self.used[order], ids.contiguous())
        places = order[found.clamp(max=len(order) - 1)]
        known = self.used[places] == ids
        if known.all():
            return places
        if self.unknown == "extra":
            substitute = torch.full_like(ids, len(order))
        elif isinstance(self.unknown, int):
            substitute = torch.full_like(ids, self.unknown)
        elif noise is None:
            substitute = ids % len(order)
        else:
            positions = torch.arange(ids[0].numel(), device=ids.device)
            draws = noise.uniform(positions).view(ids.shape)
            substitute = (draws * len(order)).long().clamp(max=len(order) - 1)
        return torch.where(known, places, substitute)

    def expand(self, ids: Tensor) -> Tensor:
        """Map places in the list back to codes."""
        return self.used[torch.where(ids < len(self.used), ids, 0)]


class Subset(Quantizer):
    """Any quantiser of one id a position, its ids renumbered.

    Args:
        quantizer: finds the codes; its losses and vectors are passed on.
        used: see `CodeSubset`.
        unknown: see `CodeSubset`.
    """

    def __init__(self, quantizer: Quantizer, *, used: int, unknown: str | int = "random") -> None:
        super().__init__()
        if quantizer.kind != "discrete" or len(quantizer.vocab_sizes) != 1:
            raise UserError(f"{type(quantizer).__name__} does not give one id a position.")
        if not 0 < used <= quantizer.vocab_sizes[0]:
            raise UserError(f"used={used} does not lie in [1, {quantizer.vocab_sizes[0]}].")
        self.quantizer = quantizer
        self.subset = CodeSubset(used, unknown=unknown)
        self.dim, self.vocab_sizes = quantizer.dim, (self.subset.size,)

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise `z` (B, ..., C) with the whole codebook; ids are places in the list."""
        quantized = self.quantizer(z, noise=noise)
        quantized.ids = self.subset.compress(quantized.ids, noise=noise)
        return quantized

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., C) of places (...)."""
        return self.quantizer.lookup(self.subset.expand(ids))
