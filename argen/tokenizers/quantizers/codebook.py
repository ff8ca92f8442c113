"""What every learned codebook shares: search, start by k-means, revival of dead codes."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from argen.errors import UserError
from argen.layers.collective import draw_rows
from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.tokenizers.quantizers.base import (
    Quantized,
    Quantizer,
    gradient_pass,
    nearest_code,
)
from argen.tokenizers.quantizers.kmeans import assignment_sums, kmeans

HEADROOM = 2.0  # a fresh code starts at this many times the count below which it would be dead


class Codebook(Quantizer):
    """Nearest row of a codebook (K, C); how rows are learned is the subclass's affair.

    A code is dead when a moving average of the vectors it is given in a step, over all processes,
    falls below `revive_below`; it then takes the place of a vector of the current batch, the same
    one on every process. A code that is never used dies after about 0.7 / (1 - count_decay) steps.

    Args:
        codes: number of rows K.
        dim: width C.
        l2_norm: compare and return unit vectors.
        gradient: `straight_through`, or `rotation` (arXiv 2410.06424).
        kmeans_steps: start from k-means on the first training batch, with this many iterations.
        revive_below: vectors a step below which a code is dead; 0 lets it rest.
        count_decay: decay of the moving average of the counts.

    Attributes:
        deferred: the owner calls `prepare` before a step and finishes learning after it, because
            one step searches the codebook several times.
    """

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        l2_norm: bool = False,
        gradient: str = "straight_through",
        kmeans_steps: int = 0,
        revive_below: float = 0.0,
        count_decay: float = 0.99,
    ) -> None:
        super().__init__()
        if codes < 2 or dim < 1:
            raise UserError(f"A codebook needs codes >= 2 and dim >= 1, not {codes} and {dim}.")
        if not 0.0 <= count_decay < 1.0:
            raise UserError(f"A decay must be in [0, 1), not {count_decay}.")
        self.dim, self.vocab_sizes = dim, (codes,)
        self.l2_norm, self.pass_gradient = l2_norm, gradient_pass(gradient)
        self.kmeans_steps, self.revive_below = kmeans_steps, revive_below
        self.count_decay, self.deferred = count_decay, False
        self.initialised: Tensor | None
        # Saved with the weights, so that a loaded codebook is not thrown away.
        self.register_buffer("initialised", torch.tensor(False) if kmeans_steps else None)

    @abstractmethod
    def rows(self) -> Tensor:
        """Return the codebook (K, C) as it is compared and looked up."""

    @abstractmethod
    def place(self, codes_K: Tensor, vectors: Tensor, counts: Tensor) -> None:
        """Put vectors (n, C) in the rows that the mask `codes_K` marks, with their counts (n,)."""

    @abstractmethod
    def counts(self) -> Tensor | None:
        """Return the moving average of the vectors a step of each code (K,), if it is kept."""

    def learn(self, z_NC: Tensor, ids_N: Tensor) -> None:
        """Take in one training step's vectors and their codes, after the search."""

    def normalise(self, z: Tensor) -> Tensor:
        """Return the vectors as they are compared with the rows."""
        return F.normalize(z, dim=-1) if self.l2_norm else z

    def search(self, z_NC: Tensor, rows_KC: Tensor) -> Tensor:
        """Return the id of the nearest row of each vector, long (N,)."""
        return nearest_code(z_NC, rows_KC)

    @torch.no_grad()
    def prepare(self, z_NC: Tensor) -> None:
        """Before a training step's search: start the codebook if need be, revive dead codes."""
        K = self.vocab_sizes[0]
        if self.initialised is not None and not self.initialised:
            centres, sizes = kmeans(z_NC, K, steps=self.kmeans_steps, unit=self.l2_norm)
            # Centres that no vector chose are as dead as they look; give them a fresh start.
            sizes = sizes.clamp(min=HEADROOM * self.revive_below)
            self.place(torch.ones_like(sizes, dtype=torch.bool), centres, sizes)
            self.initialised.fill_(True)
        counts = self.counts()
        if self.revive_below > 0 and counts is not None:
            dead_K = counts < self.revive_below
            number = int(dead_K.sum())
            if number:
                start = torch.full_like(counts[:number], HEADROOM * self.revive_below)
                self.place(dead_K, draw_rows(z_NC, number), start)

    def losses(self, z: Tensor, quantized: Tensor, rows_KC: Tensor) -> dict[str, Tensor]:
        """Return the named losses of vectors (..., C) and their rows."""
        return {"commitment": F.mse_loss(z, quantized.detach())}

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise `z` (..., C)."""
        z = self.normalise(z)
        flat = z.reshape(-1, self.dim)
        if self.training and not self.deferred:
            self.prepare(flat)
        rows = self.rows()
        ids = self.search(flat, rows).view(z.shape[:-1])
        quantized = F.embedding(ids, rows)
        losses = self.losses(z, quantized, rows)
        passed = self.pass_gradient(z, quantized)
        if self.training:
            self.learn(flat, ids.view(-1))
        return Quantized(z=passed, ids=ids, losses=losses)

    @float32
    def encode(self, z: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Return the ids (...) of vectors (..., C)."""
        flat = self.normalise(z).reshape(-1, self.dim)
        return self.search(flat, self.rows()).view(z.shape[:-1])

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., C) of ids (...)."""
        return F.embedding(ids, self.rows())

    def average_counts(self, average_K: Tensor, z_NC: Tensor, ids_N: Tensor) -> Tensor:
        """Move the average towards this step's counts, in place; return the sums (K, C)."""
        count_K, sum_KC = assignment_sums(z_NC, ids_N, self.vocab_sizes[0])
        average_K.lerp_(count_K.to(average_K.dtype), 1.0 - self.count_decay)
        return sum_KC
