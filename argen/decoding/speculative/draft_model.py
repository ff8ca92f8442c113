"""Speculative sampling with a draft model: a smaller generator proposes, the target tests.

Names: B samples, k drafts, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from argen.build import build_stored
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.speculative.acceptance import Rejection
from argen.decoding.speculative.decisions import DRAFT, Draws, use_of
from argen.decoding.speculative.distributions import (
    Laws,
    StepWeights,
    guidance_weights,
    law_type,
    twice,
)
from argen.decoding.speculative.drafters import Draft, Drafter, Verdict
from argen.decoding.speculative.lookahead import LookAhead
from argen.errors import CheckpointError, IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond
from argen.runtime.checkpoint import load_strict, read_part
from argen.runtime.files import file_inside, read_json_object
from argen.spec import require_same_spec

WEIGHTS = "generator.safetensors"


@dataclass
class DraftModel:
    """A smaller generator at work.

    Attributes:
        state: of the generator.
        weights: guidance of each step, or None.
        filters: logit filters.
        length_B: finished codes.
    """

    state: Any
    weights: StepWeights | None
    filters: Filters
    length_B: Tensor

    def rows(self, index: Tensor) -> DraftModel:
        """Return a copy of some rows, for generators whose state can be copied."""
        both = index
        if self.weights is not None:
            both = torch.cat((index, index + len(self.length_B)))
        return replace(self, state=self.state.rows(both), length_B=self.length_B[index])

    def key(self) -> Tensor:
        """Return what the next passes depend on besides the codes: nothing, (B, 0)."""
        return torch.zeros(len(self.length_B), 0)


class ModelDrafter(Drafter):
    """Drafts come from a smaller generator on the same codes, one after another.

    Args:
        generator: the smaller model.
    """

    def __init__(self, generator: Generator | None) -> None:
        self._generator = None if generator is None else generator.eval()

    @property
    def generator(self) -> Generator:
        """The smaller model; raises when there is none."""
        if self._generator is None:
            raise UserError(
                "decoder `speculative` needs a draft model: a smaller generator on the same codes, "
                "decoder.draft=DIRECTORY of a trained one. Without one use decoder=jacobi."
            )
        return self._generator

    def check(self, generator: Generator) -> None:
        """Raise if the two models do not speak the same codes in the same order."""
        own, name = self.generator, type(self.generator).__name__
        require_same_spec(
            own.spec, generator.spec, found_in="the draft model", wanted_by="the target"
        )
        if own.plan.groups != generator.plan.groups or not own.plan.lookahead:
            raise IncompatibleError(
                f"The draft model ({name}) draws codes in another order than "
                f"{type(generator).__name__}, or cannot look ahead; draft with a next-token "
                "generator of the same order."
            )
        if own.head.id_sizes != generator.head.id_sizes:
            raise IncompatibleError(
                f"The draft model ({name}) cuts codes into ids of {own.head.id_sizes}, "
                f"{type(generator).__name__} into {generator.head.id_sizes}; they must agree."
            )

    def start(
        self, generator: Generator, cond: Cond, *, guidance: Guidance, filters: Filters, k: int
    ) -> DraftModel:
        """Encode the inputs of `cond` with the draft model's own conditioner."""
        if cond.inputs is None:
            raise UserError(
                "A draft model needs the labels or text features behind a condition; make the "
                "condition with the target's own conditioner."
            )
        self.generator.to(law_type(generator)[1])
        own = self.generator.conditioner(cond.inputs)
        state = self.generator.start(guidance.rows(self.generator, own), longest_draft=k + 1)
        _, device = law_type(self.generator)
        length_B = torch.zeros(len(own), dtype=torch.long, device=device)
        return DraftModel(state, guidance_weights(guidance, self.generator), filters, length_B)

    def propose(
        self,
        memory: DraftModel,
        width_B: Tensor,
        k: int,
        positions: Tensor,
        draws: Draws,
        number: int,
    ) -> Draft:
        """Draw k codes one after another, none of them committed yet."""
        head, guided = self.generator.head, memory.weights is not None
        B, G = len(width_B), len(head.id_sizes)
        ids = torch.zeros(B, k, G, dtype=torch.long, device=width_B.device)
        laws = []
        # One pass more than drafts: the last draft must be in the cache too, should it be kept.
        for i in range(k + 1 if k else 0):
            before = twice(head.to_codes(ids[:, :i]), guided) if i else None
            params = self.generator.predict(memory.state, before)
            if i == k:
                break
            step = memory.length_B[:, None] + i
            law = Laws(head, params[:, -1:], step, memory.weights, memory.filters)
            for g in range(G):
                ids[:, i : i + 1, g] = draws.choose(
                    law.given(ids[:, i : i + 1])[:, :, g],
                    positions[:, i : i + 1],
                    use=use_of(DRAFT, number),
                    matters=(i < width_B)[:, None],
                    sub=g,
                    subs=G,
                )
            laws.append(law.given(ids[:, i : i + 1]))
        if not laws:
            return Draft(ids, ids.new_zeros(B, 0, G, 1), width_B)
        return Draft(ids, torch.cat(laws, dim=1), width_B)

    def observe(self, memory: DraftModel, verdict: Verdict) -> DraftModel:
        """Commit what became final."""
        guided = memory.weights is not None
        codes = self.generator.head.to_codes(verdict.codes)
        self.generator.commit(
            memory.state, twice(codes, guided), counts=twice(verdict.matched_B, guided)
        )
        return replace(memory, length_B=verdict.start_B + verdict.matched_B)


class Speculative(LookAhead):
    """Drafts from a smaller generator on the same codes, tested by rejection sampling.

    Exact: the codes follow the large model's law whatever the small one is (arXiv 2211.17192,
    2302.01318).

    Args:
        draft: the smaller generator, or the model directory it was saved in.
        window: tokens fed in a pass: the last final code and window - 1 drafts; 5 when None.
    """

    name = "speculative"
    usual_window = 5

    def __init__(self, draft: Generator | str | None = None, *, window: int | None = None) -> None:
        generator = _load(draft) if isinstance(draft, str) else draft
        super().__init__(drafter=ModelDrafter(generator), acceptance=Rejection(), window=window)


def _load(directory: str) -> Generator:
    """Return the generator of a model directory; only registered classes are built."""
    place = file_inside(directory, "config.json")
    if not place.is_file():
        raise CheckpointError(
            f"{directory} is not an argen model directory (no config.json in it)."
        )
    config = read_json_object(place)
    if config.get("generator") is None:
        raise CheckpointError(
            f"{directory} holds a tokenizer alone; draft with a trained generator."
        )
    generator = build_stored(
        config["generator"],
        Generator,  # type: ignore[type-abstract]
        source=place,
    )
    weights = read_part(directory, WEIGHTS, config)
    load_strict(generator, weights, source=str(Path(directory) / WEIGHTS))
    return generator
