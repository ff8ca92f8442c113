"""Speculative sampling with a draft model: a smaller generator proposes, the target tests.

Shapes: B samples, k drafts, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from argen.build import build_stored
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance, repeat_for_cfg
from argen.decoding.speculative.acceptance import Rejection
from argen.decoding.speculative.decisions import DRAFT, Decisions, use_of
from argen.decoding.speculative.distributions import (
    Distributions,
    GuidanceTable,
    guidance_table,
    probs_type,
)
from argen.decoding.speculative.drafters import Draft, Drafter, VerifyResult
from argen.decoding.speculative.lookahead import LookAhead
from argen.errors import CheckpointError, IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond
from argen.runtime.checkpoint import load_strict, read_part
from argen.runtime.files import file_inside, read_json_object
from argen.spec import require_same_spec

WEIGHTS = "generator.safetensors"


@dataclass
class DraftModelState:
    """A smaller generator at work.

    Attributes:
        generator_state: of the generator.
        guidance: of each step, or None.
        filters: logit filters.
        length_B: finished codes.
    """

    generator_state: Any
    guidance: GuidanceTable | None
    filters: Filters
    length_B: Tensor

    def rows(self, index: Tensor) -> DraftModelState:
        """Return a copy of some rows, for generators whose state can be copied."""
        both = index
        if self.guidance is not None:
            both = torch.cat((index, index + len(self.length_B)))
        return replace(
            self,
            generator_state=self.generator_state.rows(both),
            length_B=self.length_B[index],
        )

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
                f"The draft model ({name}) samples codes in another order than "
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
    ) -> DraftModelState:
        """Encode the inputs of `cond` with the draft model's own conditioner."""
        if cond.inputs is None:
            raise UserError(
                "A draft model needs the labels or text features behind a condition; make the "
                "condition with the target's own conditioner."
            )
        self.generator.to(probs_type(generator)[1])
        own = self.generator.conditioner(cond.inputs)
        state = self.generator.start(guidance.rows(self.generator, own), longest_draft=k + 1)
        _, device = probs_type(self.generator)
        length_B = torch.zeros(len(own), dtype=torch.long, device=device)
        return DraftModelState(state, guidance_table(guidance, self.generator), filters, length_B)

    def propose(
        self,
        state: DraftModelState,
        width_B: Tensor,
        k: int,
        positions: Tensor,
        decisions: Decisions,
        number: int,
    ) -> Draft:
        """Sample k codes one after another, none of them committed yet."""
        head, guided = self.generator.head, state.guidance is not None
        B, G = len(width_B), len(head.id_sizes)
        ids = torch.zeros(B, k, G, dtype=torch.long, device=width_B.device)
        proposed = []
        # One pass more than drafts: the last draft must be in the cache too, should it be kept.
        for i in range(k + 1 if k else 0):
            before = repeat_for_cfg(head.to_codes(ids[:, :i]), guided) if i else None
            outputs = self.generator.predict(state.generator_state, before)
            if i == k:
                break
            step = state.length_B[:, None] + i
            distributions = Distributions(
                head, outputs[:, -1:], step, state.guidance, state.filters
            )
            for g in range(G):
                ids[:, i : i + 1, g] = decisions.choose(
                    distributions.probs(ids[:, i : i + 1])[:, :, g],
                    positions[:, i : i + 1],
                    use=use_of(DRAFT, number),
                    where=(i < width_B)[:, None],
                    sub=g,
                )
            proposed.append(distributions.probs(ids[:, i : i + 1]))
        if not proposed:
            return Draft(ids, ids.new_zeros(B, 0, G, 1), width_B)
        return Draft(ids, torch.cat(proposed, dim=1), width_B)

    def observe(self, state: DraftModelState, verified: VerifyResult) -> DraftModelState:
        """Commit what became final."""
        guided = state.guidance is not None
        codes = self.generator.head.to_codes(verified.codes)
        self.generator.commit(
            state.generator_state,
            repeat_for_cfg(codes, guided),
            counts=repeat_for_cfg(verified.matched_B, guided),
        )
        return replace(state, length_B=verified.start_B + verified.matched_B)


class Speculative(LookAhead):
    """Drafts from a smaller generator on the same codes, tested by rejection sampling.

    Exact: the codes follow the large model's distribution whatever the small one is
    (arXiv 2211.17192, 2302.01318).

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
