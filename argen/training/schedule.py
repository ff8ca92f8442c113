"""Learning rates, and a weight decay that changes, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


class Schedule(LambdaLR):
    """Sets the learning rates and, where it changes, the weight decay of an optimiser.

    Args:
        optimizer: whose groups with weight decay follow it.
        rate: learning rate of a step as a share of the peak.
        decay: weight decay of a step; None for one that stays.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        rate: Callable[[int], float],
        decay: Callable[[int], float] | None = None,
    ) -> None:
        self._decay = decay
        self._decayed = [bool(group["weight_decay"]) for group in optimizer.param_groups]
        super().__init__(optimizer, rate)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the learning rates of the groups; sets their weight decay."""
        if self._decay is not None:
            for group, decayed in zip(self.optimizer.param_groups, self._decayed):
                if decayed:
                    group["weight_decay"] = self._decay(self.last_epoch)
        return super().get_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the schedule; what it is comes from the configuration."""
        own = ("_decay", "_decayed")
        return {key: value for key, value in super().state_dict().items() if key not in own}
