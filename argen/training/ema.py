"""Exponential moving average of the weights, with a warm-up of the decay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


def warmed_up(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """Return an update that averages with min(decay, (1 + n) / (10 + n)) after n updates.

    Without the warm-up the random initial weights would still weigh decay**steps at the end, five
    percent after 3,000 steps at 0.999.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        n = int(count)
        weight = 1.0 - min(decay, (1.0 + n) / (10.0 + n))
        floats = [(a, c) for a, c in zip(averaged, current) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [c.to(a.dtype) for a, c in floats], weight)

    return update


class EMA(WeightAveraging):
    """Keeps averaged weights; validation, grids and export use them. List it last.

    Buffers are copied, never averaged: averaging would corrupt index tables and counters.

    Args:
        decay: share of the old average kept by one step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=warmed_up(decay))

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Update after every step."""
        return step_idx is not None

    def copy_to(self, module: LightningModule) -> None:
        """Put the averaged weights into the module, also when a finished run was only reloaded."""
        if self._average_model is not None:
            self._copy_average_to_current(module)
