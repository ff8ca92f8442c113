"""Stage 1: train a tokenizer to reconstruct images, with a discriminator if there is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from argen.objectives.objective import Objective
from argen.tokenizers.base import Tokenizer
from argen.tokenizers.schedules import apply_step
from argen.tokenizers.usage import CodeUsage
from argen.training.optim import Optim
from argen.training.task import Task


class TokenizerTask(Task):
    """Minimises an objective; the discriminator, if there is one, takes the second step.

    Every term is logged unweighted. `global_step` counts batches: only the tokenizer's optimiser
    moves it.

    Args:
        tokenizer: what is trained.
        objective: its losses, and the discriminator.
        optim: optimiser and schedule of the tokenizer.
        discriminator_optim: those of the discriminator; the tokenizer's when None.
        steps: optimiser steps of the whole run.
        seed: names the random draws.
    """

    automatic_optimization = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        objective: Objective,
        optim: Optim,
        steps: int,
        discriminator_optim: Optim | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(optim=optim, steps=steps, seed=seed)
        self.automatic_optimization = False
        # Parts that are frozen put themselves into evaluation: a codebook would drift otherwise.
        self.tokenizer, self.objective = tokenizer.train(), objective
        self.discriminator_optim = discriminator_optim or optim
        self.discriminator_optim.check(steps)
        # The tokenizer's backward pass does not reach the discriminator, nor the other way round.
        self.leaves_unused = objective.discriminator is not None
        self._errors: list[Tensor] = []
        self._usage: CodeUsage | None = None

    @property
    def network(self) -> Tokenizer:
        """The tokenizer."""
        return self.tokenizer

    def configure_optimizers(self) -> Any:
        """Return optimisers and schedules, the tokenizer's first, then the discriminator's."""
        trained: list[tuple[Optim, nn.Module]] = [(self.optim, self.tokenizer)]
        if self.objective.discriminator is not None:
            trained.append((self.discriminator_optim, self.objective.discriminator))
        optimizers = [optim.make_optimizer(module) for optim, module in trained]
        schedules = [
            {"scheduler": optim.make_scheduler(optimizer, steps=self.steps), "interval": "step"}
            for (optim, _), optimizer in zip(trained, optimizers)
        ]
        return optimizers, schedules

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Take the tokenizer's step, then the discriminator's on the same reconstruction."""
        images, step = batch["image"], self.global_step

        def update(network: int, loss: Tensor) -> None:
            self._step(network, loss, batch_idx)

        metrics = self.generator_and_discriminator_step(images, step, update)
        self.log("loss", self.values["loss"], prog_bar=True)
        if (step + 1) % self.log_every == 0:
            self.log_details(self.values | metrics, len(images))

    def generator_and_discriminator_step(
        self, images: Tensor, step: int, update: Callable[[int, Tensor], None]
    ) -> dict[str, Tensor]:
        """Update the tokenizer, then the discriminator; `values` then holds the terms of both.

        Args:
            images: images (B, 3, H, W) in [-1, 1].
            step: training step.
            update: given the network, 0 the tokenizer or 1 the discriminator, and its loss.

        Returns:
            the tokenizer's metrics.
        """
        apply_step(self.tokenizer, step)
        output = self.tokenizer(images)
        total, terms = self.objective.tokenizer_loss(
            images,
            output,
            step=step,
            last_layer=self.tokenizer.last_layer(),
            encoder_layer=self.tokenizer.encoder_last_layer(),
        )
        self.values = {**terms, "loss": total.detach()}
        update(0, total)
        if self.objective.trains_discriminator(step):
            d_loss, d_terms = self.objective.discriminator_loss(images, output.images, step=step)
            self.values |= d_terms
            update(1, d_loss)
        return output.metrics

    def _step(self, network: int, loss: Tensor, batch_idx: int) -> None:
        """Add one network's gradient and, after the last batch of a step, update it."""
        optimizers: Any = self.optimizers(use_pl_optimizer=True)
        schedules: Any = self.lr_schedulers()
        optimizer = optimizers[network] if isinstance(optimizers, list) else optimizers
        schedule = schedules[network] if isinstance(schedules, list) else schedules
        if network > 0:
            # Lightning counts a step for every optimiser; batches are what counts here.
            optimizer._on_before_step = optimizer._on_after_step = _nothing
        place = batch_idx % self.accumulate
        if place == 0:
            optimizer.zero_grad()
        self.manual_backward(loss / self.accumulate)
        if place < self.accumulate - 1:
            return
        optimizer.step()
        schedule.step()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Collect squared errors and codes of held-out images."""
        images = batch["image"]
        codes = self.tokenizer.encode(images)
        decoded = self.tokenizer.decode(codes).float().clamp(-1, 1)
        self._errors.append((decoded - images).square().mean((1, 2, 3)).cpu())
        if self.tokenizer.spec.kind != "continuous":
            self._usage = self._usage or CodeUsage(self.tokenizer.spec)
            self._usage.update(codes)

    def on_validation_epoch_end(self) -> None:
        """Log PSNR over all held-out pixels, and how the codes are used."""
        error = float(torch.cat(self._errors).mean())
        psnr = 10 * math.log10(4.0 / max(error, 1e-10))
        self.log("val/psnr_db", psnr, prog_bar=True, sync_dist=True)
        if self._usage is not None:
            for name, value in self._usage.compute().items():
                self.log(f"val/{name}", value)
        self._errors, self._usage = [], None


def _nothing() -> None:
    """Stand in for the hooks that count optimiser steps."""
