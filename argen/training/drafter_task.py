"""Train a drafter to imitate its generator, which stands still."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from argen.generators.base import LossOutput
from argen.generators.conditioning import Conditioner
from argen.generators.feature_drafter import FeatureDrafter
from argen.generators.next_token import NextToken
from argen.training.codes_task import CodesTask
from argen.training.optim import Optim


class Aside:
    """Holds a network that a task reads and does not own.

    It is no part of the task's parameters, checkpoints and averages, and copies share it.
    """

    def __init__(self, network: NextToken) -> None:
        self.network = network.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Aside:
        return self


class DrafterTask(CodesTask):
    """Calls `drafter.loss` on codes of pictures and logs.

    Args:
        drafter: what is trained.
        target: the trained generator.
        optim: optimiser and schedule.
        steps: optimiser steps of the whole run.
        seed: names the random draws.
        noise_scale: see `FeatureDrafter.loss`; held-out codes are read without noise.
        logit_weight: likewise.
    """

    def __init__(
        self,
        drafter: FeatureDrafter,
        target: NextToken,
        *,
        optim: Optim,
        steps: int,
        seed: int = 0,
        noise_scale: float = 0.1,
        logit_weight: float = 0.1,
    ) -> None:
        super().__init__(optim=optim, steps=steps, seed=seed)
        self.drafter, self.aside = drafter, Aside(target)
        self.noise_scale, self.logit_weight = noise_scale, logit_weight
        self._drafter_loss: Callable[..., LossOutput] = drafter.loss

    @property
    def network(self) -> FeatureDrafter:
        """The drafter."""
        return self.drafter

    def compile_network(self) -> None:
        """Compile the drafter's loss, the target's pass included; weights keep their names."""
        self._drafter_loss = torch.compile(self.drafter.loss)

    def on_fit_start(self) -> None:
        """Bring the target to the drafter's device."""
        self.aside.network.to(self.device)

    @property
    def conditioner(self) -> Conditioner:
        """The target's."""
        return self.aside.network.conditioner

    def loss(self, batch: dict[str, Tensor], drop_B: Tensor | None) -> LossOutput:
        """Return the loss of imitating the target, under null conditions where `drop_B` is true."""
        target = self.aside.network
        with torch.no_grad():
            cond = target.conditioner(target.conditioner.of_batch(batch), drop_B=drop_B)
        return self._drafter_loss(
            target,
            batch["codes"],
            cond,
            noise_scale=self.noise_scale if self.training else 0.0,
            logit_weight=self.logit_weight,
        )
