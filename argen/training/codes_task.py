"""What every stage on codes shares: conditions are dropped, the loss is logged, none is drawn."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from argen.generators.base import LossOutput
from argen.generators.conditioning import Conditioner
from argen.training.task import Task


class CodesTask(Task):
    """Trains on batches of code shards; arguments as for `Task`."""

    @property
    @abstractmethod
    def conditioner(self) -> Conditioner:
        """What makes the conditions of a batch, and says at which rate they are dropped."""

    @abstractmethod
    def loss(self, batch: dict[str, Tensor], drop_B: Tensor | None) -> LossOutput:
        """Return the loss of a batch of B pictures, null conditions where `drop_B` is true."""

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
