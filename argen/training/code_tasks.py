"""Tasks on codes: stage 2, which trains a generator, and the drafter's, which imitates one."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from argen.generators.base import Generator, LossOutput
from argen.generators.conditioning import Conditioner
from argen.generators.drafter.feature_drafter import FeatureDrafter
from argen.generators.next_token import NextToken
from argen.training.optim import Optim
from argen.training.task import Task


class CodesTask(Task):
    """Trains on batches of code shards; arguments as for `Task`."""

    @property
    @abstractmethod
    def conditioner(self) -> Conditioner:
        """What makes the conditions of a batch, and says at which rate they are dropped."""

    @abstractmethod
    def loss(self, batch: dict[str, Tensor], drop_B: Tensor | None) -> LossOutput:
        """Return the loss of a batch of B images, null conditions where `drop_B` is true."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of codes; conditions are dropped at the conditioner's rate."""
        rate, drop_B = self.conditioner.drop_rate, None
        if rate > 0:
            drop_B = torch.rand(len(batch["label"]), device=self.device) < rate
        output = self.loss(batch, drop_B)
        self.values = {"loss": output.loss.detach()}
        self.log("loss", self.values["loss"], prog_bar=True)
        if self.logging_step:
            self.log_details(output.metrics | self.values, len(batch["label"]))
        return output.loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the loss on held-out codes."""
        output, size = self.loss(batch, None), len(batch["label"])
        self.log("val/loss", output.loss, batch_size=size, sync_dist=True)
        for name, value in output.metrics.items():
            self.log(f"val/{name}", value, batch_size=size, prog_bar=True, sync_dist=True)


class GeneratorTask(CodesTask):
    """Encodes nothing and samples nothing: calls the generator, which gives its loss, and logs.

    Args:
        generator: what is trained.
        optim: optimiser and schedule.
        steps: optimiser steps of the whole run.
        seed: names the random draws.
    """

    def __init__(self, generator: Generator, *, optim: Optim, steps: int, seed: int = 0) -> None:
        super().__init__(optim=optim, steps=steps, seed=seed)
        self.generator = generator

    @property
    def network(self) -> Generator:
        """The generator."""
        return self.generator

    @property
    def conditioner(self) -> Conditioner:
        """The generator's."""
        return self.generator.conditioner

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch, at the generator's own point of the training."""
        self.generator.set_progress(self.global_step / self.steps)
        return super().training_step(batch, batch_idx)

    def loss(self, batch: dict[str, Tensor], drop_B: Tensor | None) -> LossOutput:
        """Return the generator's loss of a batch, null conditions where `drop_B` is true."""
        inputs = self.generator.conditioner.of_batch(batch)
        output: LossOutput = self.generator(batch["codes"], inputs, drop_B=drop_B)
        return output


class Unregistered:
    """Holds a network that a task reads and does not own.

    It is no part of the task's parameters, checkpoints and averages, and copies share it.
    """

    def __init__(self, network: NextToken) -> None:
        self.network = network.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Unregistered:
        return self


class DrafterTask(CodesTask):
    """Calls the drafter, which gives its loss, on codes of images and logs.

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
        self.drafter, self.frozen_target = drafter, Unregistered(target)
        self.noise_scale, self.logit_weight = noise_scale, logit_weight

    @property
    def network(self) -> FeatureDrafter:
        """The drafter."""
        return self.drafter

    def on_fit_start(self) -> None:
        """Bring the target to the drafter's device."""
        self.frozen_target.network.to(self.device)

    @property
    def conditioner(self) -> Conditioner:
        """The target's."""
        return self.frozen_target.network.conditioner

    def loss(self, batch: dict[str, Tensor], drop_B: Tensor | None) -> LossOutput:
        """Return the loss of imitating the target, under null conditions where `drop_B` is true."""
        target = self.frozen_target.network
        with torch.no_grad():
            cond = target.conditioner(target.conditioner.of_batch(batch), drop_B=drop_B)
        output: LossOutput = self.drafter(
            target,
            batch["codes"],
            cond,
            noise_scale=self.noise_scale if self.training else 0.0,
            logit_weight=self.logit_weight,
        )
        return output
