"""How far a look-ahead strategy has come with a batch.

Names: B samples, L codes, n slots of a window, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from argen.decoding.filters import Filters
from argen.decoding.speculative.distributions import Laws, StepWeights
from argen.decoding.speculative.drafters import Verdict


@dataclass
class Progress:
    """A batch half drawn.

    Attributes:
        state: the generator's own.
        memory: the drafter's own.
        codes: sub-tokens (B, L + n, G) in the order they are drawn; final below `length_B`.
        length_B: final codes.
        width_B: drafts of each row in the next pass.
        most: drafts of a full window.
        k: the most that any row takes in the next pass, on the host.
        number: passes made.
        weights: guidance of each step, or None.
        filters: logit filters.
        order_L: position of each step.
        verdict: of the last pass.
        laws: of the slots of the last pass.
    """

    state: Any
    memory: Any
    codes: Tensor
    length_B: Tensor
    width_B: Tensor
    most: int
    k: int
    number: int
    weights: StepWeights | None
    filters: Filters
    order_L: Tensor
    verdict: Verdict | None = None
    laws: Laws | None = None

    def rows(self, index: Tensor) -> Progress:
        """Return a copy of some rows, for generators and drafters whose state can be copied."""
        both = index
        if self.weights is not None:
            both = torch.cat((index, index + len(self.length_B)))
        return replace(
            self,
            state=self.state.rows(both),
            memory=self.memory.rows(index),
            codes=self.codes[index],
            length_B=self.length_B[index],
            width_B=self.width_B[index],
            verdict=None,
            laws=None,
        )
