"""Stage 2: train a generator on codes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from argen.generators.base import Generator, LossOutput
from argen.generators.conditioning import Conditioner
from argen.training.codes_task import CodesTask
from argen.training.optim import Optim


class GeneratorTask(CodesTask):
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
        conditioner = self.generator.conditioner
        cond = conditioner(conditioner.of_batch(batch), drop_B=drop_B)
        return self._generator_loss(batch["codes"], cond)
