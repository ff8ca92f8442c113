"""Stage 2: train a generator on codes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from argen.generators.base import Generator, LossOutput
from argen.training.optim import Optim
from argen.training.task import Task


class GeneratorTask(Task):
    """Encodes nothing and samples nothing: calls `generator.loss` and logs.

    Args:
        generator: what is trained.
        optim: optimiser and schedule.
        steps: optimiser steps of the whole run.
        seed: names the random draws.
    """

    def __init__(self, generator: Generator, *, optim: Optim, steps: int, seed: int = 0) -> None:
        super().__init__(optim=optim, steps=steps, seed=seed)
        self.generator = generator
        self._generator_loss: Callable[..., LossOutput] = generator.loss

    @property
    def network(self) -> Generator:
        """The generator."""
        return self.generator

    def compile_network(self) -> None:
        """Compile the generator's loss; its weights keep their names."""
        self._generator_loss = torch.compile(self.generator.loss)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of codes; conditions are dropped at the conditioner's rate."""
        self.generator.set_progress(self.global_step / self.steps)
        conditioner = self.generator.conditioner
        drop_B = None
        if conditioner.drop_rate > 0:
            drop_B = torch.rand(len(batch["label"]), device=self.device) < conditioner.drop_rate
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

    def loss(self, batch: dict[str, Tensor], drop_B: Tensor | None) -> LossOutput:
        """Return the generator's loss of a batch, null conditions where `drop_B` is true."""
        conditioner = self.generator.conditioner
        cond = conditioner(conditioner.of_batch(batch), drop_B=drop_B)
        return self._generator_loss(batch["codes"], cond)
