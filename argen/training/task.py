"""What both stages share: optimiser, schedule, clipping, and random draws keyed by the step."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from argen.data.draws import hash_seed
from argen.training.finite import FiniteSteps
from argen.training.optim import Optim


class Task(LightningModule):
    """Trains `network`.

    Each step's random draws (dropout, dropped conditions, a loss's own) depend on (seed, step,
    rank) alone, so that a resumed run repeats them exactly.

    Args:
        optim: optimiser and schedule.
        steps: optimiser steps of the whole run.
        seed: names the random draws.

    Raises:
        UserError: the schedule does not fit into `steps`.
    """

    log_every = 50  # steps between detailed logs; `fit` sets it to the trainer's
    accumulate = 1  # batches a step, likewise
    leaves_unused = False  # whether a backward pass leaves parameters without gradient

    def __init__(self, *, optim: Optim, steps: int, seed: int = 0) -> None:
        super().__init__()
        optim.check(steps)
        self.optim, self.steps, self.seed = optim, steps, seed
        self.finite = FiniteSteps()
        self.values: dict[str, torch.Tensor] = {}  # of this step, to name what is not finite
        self._accepted, self._batch = True, 0

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        raise AttributeError("a task names its network")

    def compile_network(self) -> None:
        """Compile what a training step spends its time in, in place."""
        self.network.compile()

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its per-step schedule."""
        optimizer = self.optim.make_optimizer(self.network)
        scheduler = self.optim.make_scheduler(optimizer, steps=self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Key this step's draws."""
        key: tuple[Any, ...] = ("step", self.seed, self.global_step, self.global_rank)
        if self.accumulate > 1:
            key = (*key, batch_idx % self.accumulate)
        torch.manual_seed(hash_seed(*key))
        self.values, self._accepted, self._batch = {}, True, batch_idx

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient (Lightning's own clipping refuses fused optimisers), or drop it."""
        stepped = [p for group in optimizer.param_groups for p in group["params"]]
        self._accepted &= self.finite.accepts(stepped, self.optim.clip, self.optim.clip_value)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count steps that were skipped; too many in a row end the run."""
        what, samples = "", ""
        if not self._accepted:
            bad = [name for name, v in self.values.items() if not bool(torch.isfinite(v).all())]
            what = bad[0] if bad else "the gradient"
            samples = str(self.trainer.datamodule.samples_of(batch_idx, batch))  # type: ignore[attr-defined]
        self.finite.count(
            self._accepted, step=self.global_step, rank=self.global_rank, what=what, samples=samples
        )

    @property
    def logging_step(self) -> bool:
        """Whether loggers write after this step, so that its details are worth computing."""
        return (self.global_step + 1) % self.log_every == 0

    def log_details(self, values: dict[str, Any], batch_size: int) -> None:
        """Log means over the ranks of named values, the learning rate and the images seen."""
        named = {f"train/{name}": value for name, value in values.items()}
        self.log_dict(named, sync_dist=self.trainer.world_size > 1)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log("skipped_steps", float(self.finite.skipped))
        seen = self.global_step * self.accumulate * batch_size * self.trainer.world_size
        self.log("images_seen", float(seen))
