"""Where drafts come from, and the Jacobi kind: the model's own earlier passes.

Exactness asks one thing of a drafter: the law it declares for a draft is the law the draft was
drawn from, given everything that stands before it.

Names: B samples, k drafts, n = k + 1 positions of a window, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.speculative.decisions import GUESS, Draws, use_of
from argen.decoding.speculative.distributions import law_type
from argen.errors import UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond

Behind = Literal["nothing", "redraw", "race", "continue"]


@dataclass
class Draft:
    """Guessed codes of the next positions.

    Attributes:
        codes: sub-tokens (B, k, G).
        laws: (B, k, G, V), what each was drawn from.
        width_B: how many of the k are there in each row.
    """

    codes: Tensor
    laws: Tensor
    width_B: Tensor


@dataclass
class Verdict:
    """What one pass decided.

    Attributes:
        draft: what was tested.
        start_B: finished codes before the pass.
        codes: (B, n, G): finished below `matched_B`, from there to the draft's width drafts for
            the next passes.
        laws: (B, n, G, V), the laws that the codes have now.
        matched_B: codes that became final.
    """

    draft: Draft
    start_B: Tensor
    codes: Tensor
    laws: Tensor
    matched_B: Tensor


class Drafter(ABC):
    """Proposes drafts and learns from what becomes of them; its memory is an explicit object.

    Attributes:
        behind: what happens to the positions behind the first draft that is not kept: `nothing`;
            `redraw` them from their laws as next drafts; `race`, the same with noise shared by all
            passes; or `continue` testing, keeping or replacing each.
    """

    behind: Behind = "nothing"

    def check(self, generator: Generator) -> None:  # noqa: B027
        """Raise if it cannot draft for `generator`."""

    @abstractmethod
    def start(
        self, generator: Generator, cond: Cond, *, guidance: Guidance, filters: Filters, k: int
    ) -> Any:
        """Return a memory for B = len(cond) samples and drafts of at most k codes."""

    @abstractmethod
    def propose(
        self, memory: Any, width_B: Tensor, k: int, positions: Tensor, draws: Draws, number: int
    ) -> Draft:
        """Return k drafts.

        Args:
            memory: from `start` or `observe`.
            width_B: how many drafts each row takes.
            k: the most any row takes.
            positions: positions (B, k) of the drafts.
            draws: random decisions.
            number: number of the pass.
        """

    @abstractmethod
    def observe(self, memory: Any, verdict: Verdict) -> Any:
        """Return the memory after a pass."""


@dataclass
class Carried:
    """Drafts of the Jacobi kind, carried from the last pass.

    Attributes:
        vocab_sizes: vocabulary of each sub-token.
        codes: (B, n, G), the next positions.
        laws: (B, n, G, V), what each was drawn from.
        count_B: how many there are in each row.
        last: (B, G, V), law of the last position that a pass has seen.
    """

    vocab_sizes: tuple[int, ...]
    codes: Tensor
    laws: Tensor
    count_B: Tensor
    last: Tensor

    def rows(self, index: Tensor) -> Carried:
        """Return a copy of some rows."""
        parts = {name: getattr(self, name)[index] for name in ("codes", "laws", "count_B", "last")}
        return replace(self, **parts)

    def key(self) -> Tensor:
        """Return what the next passes depend on, (B, features)."""
        there = torch.arange(self.codes.shape[1]) < self.count_B[:, None]
        parts = (self.codes * there[..., None], self.laws * there[..., None, None], self.last)
        return torch.cat([part.flatten(1).to(self.laws.dtype) for part in parts], dim=1)


class JacobiDrafter(Drafter):
    """Drafts are the model's own draws of the last pass, behind what became final.

    Args:
        behind: see `Drafter`.
        guess: how positions that no pass has seen are filled. `uniform`: drawn uniformly, and
            declared so; `certain`: drawn uniformly, declared certain (as published: exact too, but
            seldom kept); `left`: drawn from the law of the last position that a pass has seen.
    """

    def __init__(
        self,
        *,
        behind: Behind = "continue",
        guess: Literal["uniform", "certain", "left"] = "uniform",
    ) -> None:
        if guess not in ("uniform", "certain", "left"):
            raise UserError(f"Unknown guess {guess!r}; use uniform, certain or left.")
        self.behind, self.guess = behind, guess

    def start(
        self, generator: Generator, cond: Cond, *, guidance: Guidance, filters: Filters, k: int
    ) -> Carried:
        """Return a memory of no drafts."""
        sizes, B = generator.head.id_sizes, len(cond)
        dtype, device = law_type(generator)
        codes = torch.zeros(B, 1, len(sizes), dtype=torch.long, device=device)
        laws = uniform_laws(sizes, dtype, device).expand(B, 1, -1, -1)
        return Carried(sizes, codes, laws, torch.zeros_like(codes[:, 0, 0]), laws[:, 0])

    def propose(
        self, memory: Carried, width_B: Tensor, k: int, positions: Tensor, draws: Draws, number: int
    ) -> Draft:
        """Carry what the last pass left, then guess."""
        sizes, use = memory.vocab_sizes, use_of(GUESS, number)
        slots = torch.arange(k, device=width_B.device).expand(len(width_B), k)
        carried = slots < memory.count_B[:, None]
        blind = (slots < width_B[:, None]) & ~carried
        if self.guess == "left":
            laws = memory.last[:, None].expand(-1, k, -1, -1)  # B k G V
            drawn = [
                draws.choose(
                    laws[:, :, g], positions, use=use, matters=blind, sub=g, subs=len(sizes)
                )
                for g in range(len(sizes))
            ]
            codes = torch.stack(drawn, dim=-1)
        else:
            codes = draws.guess(sizes, positions, use=use, matters=blind)
            laws = uniform_laws(sizes, memory.laws.dtype, memory.laws.device).expand(
                *codes.shape, -1
            )
            if self.guess == "certain":
                laws = F.one_hot(codes, laws.shape[-1]).to(laws.dtype)
        at = slots.clamp(max=memory.codes.shape[1] - 1)
        codes = torch.where(carried[..., None], take_slots(memory.codes, at), codes)
        laws = torch.where(carried[..., None, None], take_slots(memory.laws, at), laws)
        return Draft(codes, laws, width_B)

    def observe(self, memory: Carried, verdict: Verdict) -> Carried:
        """Carry the slots behind what became final."""
        n, end_B = verdict.codes.shape[1], verdict.draft.width_B
        source = verdict.matched_B[:, None] + torch.arange(n, device=end_B.device)
        source = source.clamp(max=n - 1)
        return Carried(
            memory.vocab_sizes,
            take_slots(verdict.codes, source),
            take_slots(verdict.laws, source),
            end_B + 1 - verdict.matched_B,
            take_slots(verdict.laws, end_B[:, None])[:, 0],
        )


def uniform_laws(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the uniform law (G, V) of each sub-token, V the largest of their vocabularies."""
    size_G1 = torch.tensor(sizes, device=device)[:, None]
    return (torch.arange(max(sizes), device=device) < size_G1).to(dtype) / size_G1


def take_slots(values: Tensor, slots: Tensor) -> Tensor:
    """Return values (B, n, ...) at slots (B, k), (B, k, ...)."""
    return values[torch.arange(len(values), device=values.device)[:, None], slots]
