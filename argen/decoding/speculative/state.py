"""How far a look-ahead strategy has come with a batch.

Shapes: B samples, L codes, n slots of a window, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from argen.decoding.filters import Filters
from argen.decoding.speculative.distributions import Distributions, GuidanceTable
from argen.decoding.speculative.drafters import VerifyResult


@dataclass
class DecodeState:
    """A batch that is being sampled.

    Attributes:
        generator_state: the generator's own.
        drafter_state: the drafter's own.
        codes: sub-tokens (B, L + n, G) in the order they are sampled; final below `length_B`.
        length_B: final codes.
        width_B: drafts of each row in the next pass.
        max_drafts: drafts of a full window.
        k: the most that any row takes in the next pass, on the host.
        number: passes made.
        guidance: of each step, or None.
        filters: logit filters.
        order_L: position of each step.
        verified: what the last pass made of its drafts.
        distributions: of the slots of the last pass.
    """

    generator_state: Any
    drafter_state: Any
    codes: Tensor
    length_B: Tensor
    width_B: Tensor
    max_drafts: int
    k: int
    number: int
    guidance: GuidanceTable | None
    filters: Filters
    order_L: Tensor
    verified: VerifyResult | None = None
    distributions: Distributions | None = None

    def rows(self, index: Tensor) -> DecodeState:
        """Return a copy of some rows, for generators and drafters whose state can be copied."""
        both = index
        if self.guidance is not None:
            both = torch.cat((index, index + len(self.length_B)))
        return replace(
            self,
            generator_state=self.generator_state.rows(both),
            drafter_state=self.drafter_state.rows(index),
            codes=self.codes[index],
            length_B=self.length_B[index],
            width_B=self.width_B[index],
            verified=None,
            distributions=None,
        )
