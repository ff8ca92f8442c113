"""Stage 2: train a generator on codes."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from argen.data.draws import hash_seed
from argen.generators.base import Generator, LossOutput
from argen.training.optim import Optim


class GeneratorTask(LightningModule):
    """Encodes nothing and samples nothing: calls `generator.loss` and logs.

    Each step's random draws (dropped conditions, dropout, a loss's own) depend on (seed, step,
    rank) alone, so that a resumed run repeats them.

    Args:
        generator: what is trained.
        optim: optimiser and schedule.
        steps: optimiser steps of the whole run.
        seed: names the random draws.
    """

    def __init__(self, generator: Generator, *, optim: Optim, steps: int, seed: int = 0) -> None:
        super().__init__()
        self.generator = generator
        self.optim, self.steps, self.seed = optim, steps, seed

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimiser and its per-step schedule."""
        optimizer = self.optim.optimizer(self.generator)
        scheduler = self.optim.scheduler(optimizer, steps=self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Key this step's draws."""
        torch.manual_seed(hash_seed("step", self.seed, self.global_step, self.global_rank))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of codes; conditions are dropped at the conditioner's rate."""
        conditioner = self.generator.conditioner
        drop_B = None
        if conditioner.drop_rate > 0:
            drop_B = torch.rand(len(batch["label"]), device=self.device) < conditioner.drop_rate
        output = self._loss(batch, drop_B)
        self.log("loss", output.loss.detach(), prog_bar=True)
        if self.global_step % self.trainer.log_every_n_steps == 0:
            self.log_dict({f"train/{name}": value for name, value in output.metrics.items()})
            self.log("lr", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
            seen = self.global_step * len(batch["label"]) * self.trainer.world_size
            self.log("images_seen", float(seen))
        return output.loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the loss on held-out codes."""
        output, size = self._loss(batch, None), len(batch["label"])
        self.log("val/loss", output.loss, batch_size=size, sync_dist=True)
        for name, value in output.metrics.items():
            self.log(f"val/{name}", value, batch_size=size, prog_bar=True, sync_dist=True)

    def _loss(self, batch: dict[str, Tensor], drop_B: Tensor | None) -> LossOutput:
        cond = self.generator.conditioner(batch["label"], drop_B=drop_B)
        return self.generator.loss(batch["codes"], cond)
