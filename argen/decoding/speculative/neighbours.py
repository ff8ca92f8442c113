"""Relaxed acceptance of LANTERN and LANTERN++ (arXiv 2410.03355, 2502.06352).

A draft borrows the probability of its nearest codes in the codebook, up to a bound, because such
codes look alike. Not exact: the distribution of a code moves by at most about the borrowed mass.

Shapes: n positions, V vocabulary, N neighbours, C code width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from argen.decoding.speculative.acceptance import Acceptance, prob_of
from argen.errors import UserError
from argen.generators.base import Generator


def nearest_codes(vectors_VC: Tensor, count: int) -> Tensor:
    """Return the ids (V, count) of the nearest other codes, nearest first.

    Args:
        vectors_VC: rows of the codebook, compared as they are.
        count: how many, at most V - 1.
    """
    V = len(vectors_VC)
    if not 0 < count < V:
        raise UserError(f"{count} neighbours of a codebook of {V} codes: give 1 to {V - 1}.")
    parts = []
    for rows in torch.arange(V, device=vectors_VC.device).split(1024):
        distance = torch.cdist(
            vectors_VC[rows].float(),
            vectors_VC.float(),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        distance[torch.arange(len(rows)), rows] = float("inf")  # not its own neighbour
        parts.append(distance.sort(dim=-1, stable=True).indices[:, :count])
    return torch.cat(parts)


class NeighbourRejection(Acceptance):
    """Keep x with min(1, (p[x] + borrowed) / q[x]).

    Borrowed is the largest sum of p over the first few of the k nearest codes of x that stays
    within the bound: delta itself, or (delta - 1) p[x] where delta is above 1 (LANTERN++).

    Args:
        k: number of neighbours, 0 for plain rejection sampling.
        delta: bound.
        one_hot: treat the distribution of drafts as one-hot (q = 1 at the draft), as for trees of
            likeliest tokens.
        nearest: from `nearest_codes`, at least k + 1 columns.
    """

    def __init__(
        self, *, k: int, delta: float, one_hot: bool = False, nearest: Tensor | None = None
    ) -> None:
        if k < 0 or delta < 0:
            raise UserError(f"k={k} and delta={delta}: neighbours and bound cannot be negative.")
        self.k, self.delta, self.one_hot, self.nearest = k, delta, one_hot, nearest

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Only without neighbours."""
        return self.k == 0

    def check(self, generator: Generator) -> None:
        """Raise unless the table of neighbours is there."""
        if self.k and self.nearest is None:
            raise UserError(
                "decoder `relaxed` compares codebook rows: bind the tokenizer first, "
                "decoder.bind(tokenizer), or use k=0."
            )

    def borrowed(self, p: Tensor, draft: Tensor) -> Tensor:
        """Return the borrowed mass (...) of drafts (...) under distributions p (..., V)."""
        if not self.k:
            return torch.zeros_like(p[..., 0])
        mass = p.gather(-1, self._near(draft, self.k)).cumsum(-1)
        bound = torch.full_like(mass[..., :1], self.delta)
        if self.delta > 1:
            bound = (self.delta - 1) * prob_of(p, draft)[..., None]
        return torch.where(mass <= bound, mass, 0.0).amax(-1)

    def _used(self, p: Tensor, draft: Tensor) -> Tensor:
        """Return whether any neighbour fits the bound, even one of no probability."""
        if not self.k:
            return torch.zeros_like(draft, dtype=torch.bool)
        first = prob_of(p, self._near(draft, 1)[..., 0])
        bound = self.delta if self.delta <= 1 else (self.delta - 1) * prob_of(p, draft)
        return first <= bound

    def _near(self, draft: Tensor, count: int) -> Tensor:
        assert self.nearest is not None
        return self.nearest.to(draft.device)[draft][..., :count]

    def probability(self, p: Tensor, q: Tensor, draft: Tensor) -> Tensor:
        """Return min(1, (p[x] + borrowed) / q[x])."""
        mass = prob_of(p, draft) + self.borrowed(p, draft)
        given = torch.ones_like(mass) if self.one_hot else prob_of(q, draft)
        return torch.where(mass > 0, (mass / given).clamp(max=1.0), 0.0)

    def residual(self, p: Tensor, q: Tensor, draft: Tensor) -> Tensor:
        """Return what is left of p, uniform where nothing is.

        As published, q counts for nothing on the k + 1 nearest codes of a draft that borrowed; of
        a one-hot draft, those codes and the draft itself are taken out of p.
        """
        gone = torch.zeros_like(p, dtype=torch.bool)
        if self.k:
            near = self._near(draft, self.k + 1)
            gone = gone.scatter(-1, near, self._used(p, draft)[..., None].expand_as(near))
        if self.one_hot:
            rest = p.masked_fill(gone.scatter(-1, draft[..., None], True), 0.0)
        else:
            rest = (p - q.masked_fill(gone, 0.0)).clamp(min=0)
        total = rest.sum(-1, keepdim=True)
        return torch.where(total > 0, rest / total, 1.0 / p.shape[-1])
