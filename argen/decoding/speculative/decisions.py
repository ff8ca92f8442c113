"""The random decisions of a speculative strategy, each from noise keyed by position and pass.

Strategies decide only through this class, so that `argen.testing.enumeration` can take its place
and follow every outcome instead of one. `matters` marks the decisions that anything depends on.

Names: B samples, n positions of a window, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from argen.layers.noise import Noise

RACE, FIRST = 1 << 23, 1 << 24  # heads and masked decoding count their uses from far below
KEEP, REPAIR, FRESH, GUESS, DRAFT, BRANCH = range(6)  # what a draw is for
KINDS = 8


def use_of(kind: int, number: int = 0) -> int:
    """Return the `use` under which noise is keyed: what for, in the pass of this number."""
    return FIRST + number * KINDS + kind


def draw(law: Tensor, uniform: Tensor) -> Tensor:
    """Draw by inverting the cumulative distribution: the first token whose sum exceeds the uniform.

    Args:
        law: (..., V), not negative; need not sum to one.
        uniform: (...), in [0, 1).

    Returns:
        ids (...), long; never a token of probability zero.
    """
    cdf = law.cumsum(-1)
    target = uniform[..., None].to(cdf.dtype) * cdf[..., -1:]
    ids = torch.searchsorted(cdf, target, right=True)[..., 0]
    return torch.minimum(ids, (cdf < cdf[..., -1:]).sum(-1))


class Draws:
    """Decisions for a batch.

    Args:
        noise: keyed draws.
    """

    def __init__(self, noise: Noise) -> None:
        self.noise = noise

    def keep(
        self, chance: Tensor, positions: Tensor, *, use: int, matters: Tensor, chain: bool
    ) -> Tensor:
        """Keep each draft with its own chance.

        Args:
            chance: (B, n, G).
            positions: (B, n).
            use: from `use_of`.
            matters: drafts that are there, boolean (B, n).
            chain: whether nothing depends on the drafts behind the first that is not kept; else
                only the later sub-tokens of the same position are without effect.

        Returns:
            boolean (B, n, G), false where there is no draft.
        """
        uniform = self.noise.uniform(positions, (chance.shape[-1],), use=use).to(chance.device)
        return (uniform < chance) & matters[..., None]

    def choose(
        self,
        law: Tensor,
        positions: Tensor,
        *,
        use: int,
        matters: Tensor,
        sub: int = 0,
        subs: int = 1,
    ) -> Tensor:
        """Draw ids (B, n) from laws (B, n, V) of sub-token `sub` of `subs`."""
        uniform = self.noise.uniform(positions, (subs,), use=use)[..., sub]
        return draw(law, uniform.to(law.device))

    def race(
        self, law: Tensor, positions: Tensor, *, matters: Tensor, sub: int = 0, subs: int = 1
    ) -> Tensor:
        """Draw ids (B, n) with one Gumbel vector a position, the same in every pass.

        The ids of similar laws are then mostly equal (Gumbel coupling): each is the argmax of
        log law + the same noise.
        """
        gumbel = self.noise.gumbel(positions, (law.shape[-1],), use=RACE + sub)
        return (law.log() + gumbel.to(law.device, law.dtype)).argmax(-1)

    def guess(
        self, vocab_sizes: tuple[int, ...], positions: Tensor, *, use: int, matters: Tensor
    ) -> Tensor:
        """Draw blind guesses (B, n, G), uniform over each sub-token's vocabulary."""
        uniform = self.noise.uniform(positions, (len(vocab_sizes),), use=use)
        sizes = torch.tensor(vocab_sizes, device=uniform.device)
        return torch.minimum((uniform * sizes).long(), sizes - 1)
