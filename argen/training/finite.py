"""Steps whose gradient is not finite: skipped, counted, and after too many in a row the end."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from argen.errors import UserError

log = logging.getLogger(__name__)


class FiniteSteps:
    """Watches gradients; a NaN or infinity on one rank reaches all of them with the average.

    Args:
        most: steps in a row that may be skipped.

    Attributes:
        skipped: steps skipped since the start.
        in_a_row: steps skipped since the last good one.
    """

    def __init__(self, most: int = 10) -> None:
        self.most, self.skipped, self.in_a_row = most, 0, 0

    def accepts(
        self, parameters: Iterable[nn.Parameter], clip: float, clip_value: float = 0.0
    ) -> bool:
        """Clip gradients and return whether their norm is finite; drop them when it is not.

        Without gradients an optimiser changes nothing.

        Args:
            parameters: those of one optimiser.
            clip: largest norm; 0 for no clipping.
            clip_value: largest entry, after that; 0 for no clipping.
        """
        stepped = [p for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in stepped])  # type: ignore[misc]
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not bool(torch.isfinite(whole)):
            for parameter in stepped:
                parameter.grad = None
            return False
        if clip > 0:
            nn.utils.clip_grads_with_norm_(stepped, clip, norm)
        if clip_value > 0:
            nn.utils.clip_grad_value_(stepped, clip_value)
        return True

    def count(self, accepted: bool, *, step: int, rank: int, what: str, samples: str) -> None:
        """Note how a step went.

        Args:
            accepted: from `accepts`.
            step: its number.
            rank: of this process.
            what: the value that is not finite.
            samples: the batch's samples, as a person can find them again.

        Raises:
            UserError: after `most` skipped steps in a row.
        """
        if accepted:
            self.in_a_row = 0
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        told = f"step {step}, rank {rank}: {what} is not finite on samples {samples}"
        log.warning("%s; the step is skipped (%d so far)", told, self.skipped)
        if self.in_a_row >= self.most:
            raise UserError(
                f"{self.in_a_row} steps in a row gave nothing finite, the last: {told}. Lower "
                "optim.lr, train in trainer.precision=32-true, or look at these samples; "
                "fit.max_skipped sets how many are borne. The last checkpoint is from before."
            )
