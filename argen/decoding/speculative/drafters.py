"""Where drafts come from, and the Jacobi kind: the model's own earlier passes.

Exactness asks one thing of a drafter: the distribution it declares for a draft is the one the
draft was sampled from, given everything that stands before it.

Shapes: B samples, k drafts, n = k + 1 positions of a window, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.speculative.decisions import GUESS, Decisions, use_of
from argen.decoding.speculative.distributions import probs_type
from argen.errors import UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond

AfterRejection = Literal["stop", "resample", "gumbel", "continue"]
Guess = Literal["uniform", "one_hot", "left"]


@dataclass
class Draft:
    """Guessed codes of the next positions.

    Attributes:
        codes: sub-tokens (B, k, G).
        probs: (B, k, G, V), the distribution each was sampled from.
        width_B: how many of the k are there in each row.
    """

    codes: Tensor
    probs: Tensor
    width_B: Tensor


@dataclass
class VerifyResult:
    """What one pass made of its drafts.

    Attributes:
        draft: what was tested.
        start_B: finished codes before the pass.
        codes: (B, n, G): finished below `matched_B`, from there to the draft's width drafts for
            the next passes.
        probs: (B, n, G, V), the distributions that the codes have now.
        matched_B: codes that became final.
    """

    draft: Draft
    start_B: Tensor
    codes: Tensor
    probs: Tensor
    matched_B: Tensor


class Drafter(ABC):
    """Proposes drafts and learns from what becomes of them; its state is an explicit object.

    Attributes:
        after_rejection: policy for the positions behind the first rejected draft: `stop`;
            `resample` them from their distributions as next drafts; `gumbel`, the same with Gumbel
            noise shared by all passes; or `continue` testing, keeping or replacing each.
    """

    after_rejection: AfterRejection = "stop"

    def check(self, generator: Generator) -> None:  # noqa: B027
        """Raise if it cannot draft for `generator`."""

    @abstractmethod
    def start(
        self, generator: Generator, cond: Cond, *, guidance: Guidance, filters: Filters, k: int
    ) -> Any:
        """Return a state for B = len(cond) samples and drafts of at most k codes."""

    @abstractmethod
    def propose(
        self,
        state: Any,
        width_B: Tensor,
        k: int,
        positions: Tensor,
        decisions: Decisions,
        number: int,
    ) -> Draft:
        """Return k drafts.

        Args:
            state: from `start` or `observe`.
            width_B: how many drafts each row takes.
            k: the most any row takes.
            positions: positions (B, k) of the drafts.
            decisions: random decisions.
            number: number of the pass.
        """

    @abstractmethod
    def observe(self, state: Any, verified: VerifyResult) -> Any:
        """Return the state after a pass."""


@dataclass
class JacobiState:
    """Drafts of the Jacobi kind, carried from the last pass.

    Attributes:
        vocab_sizes: vocabulary of each sub-token.
        codes: (B, n, G), the next positions.
        probs: (B, n, G, V), the distribution each was sampled from.
        count_B: how many there are in each row.
        last: (B, G, V), distribution of the last position that a pass has seen.
    """

    vocab_sizes: tuple[int, ...]
    codes: Tensor
    probs: Tensor
    count_B: Tensor
    last: Tensor

    def rows(self, index: Tensor) -> JacobiState:
        """Return a copy of some rows."""
        parts = {name: getattr(self, name)[index] for name in ("codes", "probs", "count_B", "last")}
        return replace(self, **parts)

    def key(self) -> Tensor:
        """Return what the next passes depend on, (B, features)."""
        there = torch.arange(self.codes.shape[1]) < self.count_B[:, None]
        parts = (self.codes * there[..., None], self.probs * there[..., None, None], self.last)
        return torch.cat([part.flatten(1).to(self.probs.dtype) for part in parts], dim=1)


class JacobiDrafter(Drafter):
    """Drafts are the model's own samples of the last pass, behind what became final.

    Args:
        after_rejection: see `Drafter`.
        guess: how positions that no pass has seen are filled. `uniform`: sampled uniformly, and
            declared so; `one_hot`: sampled uniformly, but declared a one-hot distribution (as
            published: exact too, but seldom kept); `left`: sampled from the distribution of the
            last position that a pass has seen.
    """

    def __init__(
        self,
        *,
        after_rejection: AfterRejection = "continue",
        guess: Guess | Literal["certain"] = "uniform",
    ) -> None:
        if guess == "certain":  # its name before 0.2
            warnings.warn(
                "guess=certain is now guess=one_hot; the old name ends with 0.3.",
                FutureWarning,
                stacklevel=3,
            )
            guess = "one_hot"
        if guess not in get_args(Guess):
            raise UserError(f"Unknown guess {guess!r}; use uniform, one_hot or left.")
        self.after_rejection, self.guess = after_rejection, guess

    def start(
        self, generator: Generator, cond: Cond, *, guidance: Guidance, filters: Filters, k: int
    ) -> JacobiState:
        """Return a state of no drafts."""
        sizes, B = generator.head.id_sizes, len(cond)
        dtype, device = probs_type(generator)
        codes = torch.zeros(B, 1, len(sizes), dtype=torch.long, device=device)
        probs = uniform_probs(sizes, dtype, device).expand(B, 1, -1, -1)
        return JacobiState(sizes, codes, probs, torch.zeros_like(codes[:, 0, 0]), probs[:, 0])

    def propose(
        self,
        state: JacobiState,
        width_B: Tensor,
        k: int,
        positions: Tensor,
        decisions: Decisions,
        number: int,
    ) -> Draft:
        """Carry what the last pass left, then guess."""
        sizes, use = state.vocab_sizes, use_of(GUESS, number)
        slots = torch.arange(k, device=width_B.device).expand(len(width_B), k)
        carried = slots < state.count_B[:, None]
        blind = (slots < width_B[:, None]) & ~carried
        if self.guess == "left":
            probs = state.last[:, None].expand(-1, k, -1, -1)  # B k G V
            sampled = [
                decisions.choose(probs[:, :, g], positions, use=use, where=blind, sub=g)
                for g in range(len(sizes))
            ]
            codes = torch.stack(sampled, dim=-1)
        else:
            codes = decisions.guess(sizes, positions, use=use, where=blind)
            probs = uniform_probs(sizes, state.probs.dtype, state.probs.device).expand(
                *codes.shape, -1
            )
            if self.guess == "one_hot":
                probs = F.one_hot(codes, probs.shape[-1]).to(probs.dtype)
        at = slots.clamp(max=state.codes.shape[1] - 1)
        codes = torch.where(carried[..., None], take_slots(state.codes, at), codes)
        probs = torch.where(carried[..., None, None], take_slots(state.probs, at), probs)
        return Draft(codes, probs, width_B)

    def observe(self, state: JacobiState, verified: VerifyResult) -> JacobiState:
        """Carry the slots behind what became final."""
        n, end_B = verified.codes.shape[1], verified.draft.width_B
        source = verified.matched_B[:, None] + torch.arange(n, device=end_B.device)
        source = source.clamp(max=n - 1)
        return JacobiState(
            state.vocab_sizes,
            take_slots(verified.codes, source),
            take_slots(verified.probs, source),
            end_B + 1 - verified.matched_B,
            take_slots(verified.probs, end_B[:, None])[:, 0],
        )


def uniform_probs(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return uniform distributions (G, V), one a sub-token; V is the largest vocabulary."""
    size_G1 = torch.tensor(sizes, device=device)[:, None]
    return (torch.arange(max(sizes), device=device) < size_G1).to(dtype) / size_G1


def take_slots(values: Tensor, slots: Tensor) -> Tensor:
    """Return values (B, n, ...) at slots (B, k), (B, k, ...)."""
    return values[torch.arange(len(values), device=values.device)[:, None], slots]
