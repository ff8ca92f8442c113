"""Stage 1: train a tokenizer to reconstruct pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F

from argen.data.draws import hash_seed
from argen.errors import UserError, suggest
from argen.tokenizers.base import Tokenizer, TokenizerOutput
from argen.training.optim import Optim

RECONSTRUCTION = {"l1": F.l1_loss, "l2": F.mse_loss}


class TokenizerTask(LightningModule):
    """Minimises a weighted sum of named losses.

    Every loss is logged unweighted. Each step's random draws depend on (seed, step, rank) alone,
    so that a resumed run repeats them.

    Args:
        tokenizer: what is trained.
        optim: optimiser and schedule.
        steps: optimiser steps of the whole run.
        losses: weight of each loss: `l1` and `l2` compare pictures, the others are the
            tokenizer's own (`codebook`, `commitment`, `entropy`, ...); one of weight 0 is not used.
        seed: names the random draws.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        optim: Optim,
        steps: int,
        losses: Mapping[str, float],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.optim, self.steps, self.seed = optim, steps, seed
        self.loss_weights = {name: float(weight) for name, weight in losses.items()}
        if not any(self.loss_weights.get(name) for name in RECONSTRUCTION):
            raise UserError("A tokenizer needs a reconstruction loss: set losses.l1 or losses.l2.")
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._ids: list[Tensor] = []

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimiser and its per-step schedule."""
        optimizer = self.optim.optimizer(self.tokenizer)
        scheduler = self.optim.scheduler(optimizer, steps=self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Key this step's draws."""
        torch.manual_seed(hash_seed("step", self.seed, self.global_step, self.global_rank))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the weighted loss of a batch of pictures."""
        images = batch["image"]
        output = self.tokenizer(images)
        losses = self.named_losses(images, output)
        total = self.total(losses)
        self.log("loss", total.detach(), prog_bar=True)
        if self.global_step % self.trainer.log_every_n_steps == 0:
            self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
            self.log_dict({f"train/{name}": value for name, value in output.metrics.items()})
            self.log("lr", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
            self.log("images_seen", float(self.global_step * len(images) * self.trainer.world_size))
        return total

    def named_losses(self, images: Tensor, output: TokenizerOutput) -> dict[str, Tensor]:
        """Return every loss by name, unweighted, in float32."""
        reconstruction = output.images.float()
        own = {
            name: function(reconstruction, images.float())
            for name, function in RECONSTRUCTION.items()
            if self.loss_weights.get(name)
        }
        return own | output.losses

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum; every loss needs a weight, and every weight a loss."""
        for name in losses:
            if name not in self.loss_weights:
                raise UserError(
                    f"The tokenizer gives a loss {name!r} that has no weight; set losses.{name} "
                    "(0 to leave it out)."
                )
        for name, weight in self.loss_weights.items():
            if weight and name not in losses:
                raise UserError(
                    f"losses.{name}={weight}, but this tokenizer gives no such loss."
                    f"{suggest(name, losses)} It gives: {', '.join(losses)}."
                )
        return torch.stack([self.loss_weights[k] * v for k, v in losses.items()]).sum()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Collect squared errors and codes of held-out pictures."""
        images = batch["image"]
        codes = self.tokenizer.encode(images)
        decoded = self.tokenizer.decode(codes).float().clamp(-1, 1)
        errors_B = (decoded - images).square().mean((1, 2, 3))
        self._seen.append((errors_B.sum().cpu(), torch.tensor(float(len(images)))))
        if self.tokenizer.spec.kind == "discrete":
            self._ids.append(codes.cpu())

    def on_validation_epoch_end(self) -> None:
        """Log PSNR over all held-out pixels, and how many codes they use."""
        error = sum(float(e) for e, _ in self._seen) / max(
            1.0, sum(float(n) for _, n in self._seen)
        )
        psnr = 10 * math.log10(4.0 / max(error, 1e-10))
        self.log("val/psnr_db", psnr, prog_bar=True, sync_dist=True)
        if self._ids:
            ids, spec = torch.cat(self._ids), self.tokenizer.spec
            if spec.sub_tokens == 1:
                counts = torch.bincount(ids.flatten(), minlength=spec.vocab_size).double()
                share = counts / counts.sum()
                entropy = -(share * share.clamp_min(1e-12).log()).sum()
                self.log("val/codes_used", float((counts > 0).double().mean()), sync_dist=True)
                self.log("val/perplexity", float(entropy.exp()), sync_dist=True)
        self._seen, self._ids = [], []
