"""Whether a draft is kept, and what takes its place: the rules of speculative sampling.

Shapes: B samples, n positions, G sub-tokens, V vocabulary. p is the
distribution a position has now, q the one its draft was sampled from, x the draft.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator


def prob_of(probs: Tensor, codes: Tensor) -> Tensor:
    """Return the probability (...) of each code in its distribution (..., V)."""
    return probs.gather(-1, codes[..., None])[..., 0]


def ratio(p: Tensor, q: Tensor) -> Tensor:
    """Return min(1, p / q), with 0 / 0 as 0."""
    return torch.where(p > 0, (p / q).clamp(max=1.0), 0.0)


def residual_distribution(p: Tensor, q: Tensor) -> Tensor:
    """Return the residual: p - q where positive, normalised; p where rounding leaves nothing."""
    rest = (p - q).clamp(min=0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, p)


class Acceptance(ABC):
    """A rule that tests drafts one by one.

    Attributes:
        exact: whether a kept or replaced draft follows p exactly.
    """

    exact: bool

    def check(self, generator: Generator) -> None:  # noqa: B027
        """Raise if the rule needs something this generator does not have."""

    @abstractmethod
    def probability(self, p: Tensor, q: Tensor, draft: Tensor) -> Tensor:
        """Return the acceptance probability (B, n, G) of each draft (B, n, G).

        Args:
            p: (B, n, G, V).
            q: (B, n, G, V).
            draft: long (B, n, G).
        """

    def residual(self, p: Tensor, q: Tensor, draft: Tensor) -> Tensor:
        """Return the distribution (..., V) of what takes the place of a rejected draft (...)."""
        return residual_distribution(p, q)


class Rejection(Acceptance):
    """Keep with min(1, p[x] / q[x]), else sample from the positive part of p - q.

    The result follows p exactly (arXiv 2211.17192, 2302.01318).
    """

    exact = True

    def probability(self, p: Tensor, q: Tensor, draft: Tensor) -> Tensor:
        """Return min(1, p[x] / q[x])."""
        return ratio(prob_of(p, draft), prob_of(q, draft))


class GroupRejection(Acceptance):
    """Keep with the ratio of a group of look-alike tokens around the draft (GSD, 2508.07747).

    The group holds the tokens whose rank in p is near that of the draft, whose probability is
    within `p_threshold` of its own and whose embedding within squared distance `d_threshold`. The
    draft itself is kept, not redrawn inside the group, so probability moves between look-alikes:
    the result is close to p, not p.

    Args:
        half_width: the group spans ranks r - half_width to r + half_width - 1; a draft among the
            `half_width` least likely tokens is tested alone.
        p_threshold: largest difference of probabilities.
        d_threshold: largest squared Euclidean distance of embeddings; infinite switches it off.
        known_codes: distances are used only in groups whose ids are all at most this.
        vectors: embeddings (V, D); taken from the generator when None.
    """

    exact = False

    def __init__(
        self,
        *,
        half_width: int = 7,
        p_threshold: float = 0.15,
        d_threshold: float = 0.5,
        known_codes: int = 10000,
        vectors: Tensor | None = None,
    ) -> None:
        if half_width < 1:
            raise UserError(f"half_width={half_width}: a group needs at least one neighbour rank.")
        self.half_width, self.p_threshold = half_width, p_threshold
        self.d_threshold, self.known_codes = d_threshold, known_codes
        self.given = vectors is not None
        self.vectors = vectors

    def check(self, generator: Generator) -> None:
        """Take the embeddings of the generator's codes."""
        if self.d_threshold == float("inf") or self.given:
            return
        table = getattr(generator, "embed", None)
        if not isinstance(table, torch.nn.Embedding):
            raise IncompatibleError(
                f"decoder `grouped` compares code embeddings, and {type(generator).__name__} has "
                "no plain table of them; set d_threshold=.inf to group by probability alone."
            )
        self.vectors = table.weight

    def probability(self, p: Tensor, q: Tensor, draft: Tensor) -> Tensor:
        """Return min(1, p[group] / q[group])."""
        V = p.shape[-1]
        order = p.argsort(dim=-1)  # (B, n, G, V), least likely first
        rank = (order == draft[..., None]).int().argmax(-1, keepdim=True)
        near = rank + torch.arange(-self.half_width, self.half_width, device=p.device)
        ranked = (near >= 0) & (near < V)
        group = order.gather(-1, near.clamp(0, V - 1))  # (B, n, G, 2 half_width)
        p_x, p_s, q_s = prob_of(p, draft)[..., None], p.gather(-1, group), q.gather(-1, group)
        alike = ranked & ((p_s - p_x).abs() < self.p_threshold)
        if self.vectors is not None and self.d_threshold != float("inf"):
            vectors = self.vectors.to(p.device)
            gap = (vectors[group] - vectors[draft][..., None, :]).square().sum(-1)
            largest = group.masked_fill(~ranked, 0).amax(-1, keepdim=True)
            alike &= (gap < self.d_threshold) | (largest > self.known_codes)
        grouped = ratio((p_s * alike).sum(-1), (q_s * alike).sum(-1))
        alone = ratio(p_x[..., 0], prob_of(q, draft))
        return torch.where(rank[..., 0] >= self.half_width, grouped, alone)
