"""The random decisions of a speculative strategy, each from noise keyed by position and pass.

Strategies decide only through this class, so that `argen.testing.enumeration` can take its place
and follow every outcome instead of one. `where` marks the decisions that are made at all; elsewhere
ids are 0 and nothing is accepted.

Shapes: B samples, n positions of a window, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from argen.generators.heads.sampling import sample_probs
from argen.layers.noise import Noise

COUPLED, FIRST = 1 << 23, 1 << 24  # heads and masked decoding count their uses from far below
ACCEPT, RESIDUAL, FRESH, GUESS, DRAFT, BRANCH = range(6)  # what a random number is for
KINDS = 8


def use_of(kind: int, number: int = 0) -> int:
    """Return the `use` under which noise is keyed: what for, in the pass of this number."""
    return FIRST + number * KINDS + kind


class Decisions:
    """Decisions for a batch.

    Args:
        noise: keyed random numbers.
    """

    def __init__(self, noise: Noise) -> None:
        self.noise = noise

    def accept(
        self, probability: Tensor, positions: Tensor, *, use: int, where: Tensor, chain: bool
    ) -> Tensor:
        """Accept each draft with its own probability, up to the first that is rejected.

        Args:
            probability: (B, n, G), in [0, 1].
            positions: (B, n).
            use: from `use_of`.
            where: drafts that are there, boolean (B, n).
            chain: whether a rejection ends the whole row; else only the later sub-tokens of its
                own position.

        Returns:
            boolean (B, n, G), false where there is no draft.
        """
        G = probability.shape[-1]
        uniform = self.noise.uniform(positions, (G,), use=use).to(probability.device)
        accepted = (uniform < probability) & where[..., None]
        runs = accepted.flatten(1) if chain else accepted
        return (runs.long().cumprod(-1) > 0).view_as(accepted)

    def choose(
        self, probs: Tensor, positions: Tensor, *, use: int, where: Tensor, sub: int = 0
    ) -> Tensor:
        """Sample ids (B, n) from the distributions (B, n, V) of sub-token `sub`."""
        uniform = self.noise.uniform(positions, (sub + 1,), use=use)[..., sub]
        return torch.where(where, sample_probs(probs, uniform.to(probs.device)), 0)

    def gumbel_max(
        self, probs: Tensor, positions: Tensor, *, where: Tensor, sub: int = 0
    ) -> Tensor:
        """Sample ids (B, n) with one Gumbel vector a position, the same in every pass.

        The ids of similar distributions are then mostly equal (Gumbel coupling): each is the
        argmax of log probs + the same noise.
        """
        gumbel = self.noise.gumbel(positions, (probs.shape[-1],), use=COUPLED + sub)
        scores = probs.log() + gumbel.to(probs.device, probs.dtype)
        return torch.where(where, scores.argmax(-1), 0)

    def guess(
        self, vocab_sizes: tuple[int, ...], positions: Tensor, *, use: int, where: Tensor
    ) -> Tensor:
        """Sample blind guesses (B, n, G), uniform over each sub-token's vocabulary."""
        uniform = self.noise.uniform(positions, (len(vocab_sizes),), use=use)
        sizes = torch.tensor(vocab_sizes, device=uniform.device)
        ids = torch.minimum((uniform * sizes).long(), sizes - 1).to(where.device)
        return torch.where(where[..., None], ids, 0)
