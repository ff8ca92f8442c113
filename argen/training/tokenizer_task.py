"""Stage 1: train a tokenizer to reconstruct pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from argen.errors import UserError, suggest
from argen.tokenizers.base import Tokenizer, TokenizerOutput
from argen.training.optim import Optim
from argen.training.task import Task

RECONSTRUCTION = {"l1": F.l1_loss, "l2": F.mse_loss}


class TokenizerTask(Task):
    """Minimises a weighted sum of named losses.

    Every loss is logged unweighted.

    Args:
        tokenizer: what is trained.
        optim: optimiser and schedule.
        steps: optimiser steps of the whole run.
        losses: weight of each loss: `l1` and `l2` compare pictures, others are the tokenizer's
            own; each must exist.
        quantizer_losses: weights of the tokenizer's own losses (`codebook`, `commitment`,
            `entropy`, ...), used for those it has.
        seed: names the random draws.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        optim: Optim,
        steps: int,
        losses: Mapping[str, float],
        quantizer_losses: Mapping[str, float],
        seed: int = 0,
    ) -> None:
        super().__init__(optim=optim, steps=steps, seed=seed)
        self.tokenizer = tokenizer
        self.loss_weights = {name: float(weight) for name, weight in losses.items()}
        self.own_weights = {name: float(weight) for name, weight in quantizer_losses.items()}
        if not any(self.loss_weights.get(name) for name in RECONSTRUCTION):
            raise UserError("A tokenizer needs a reconstruction loss: set losses.l1 or losses.l2.")
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._ids: list[Tensor] = []

    @property
    def network(self) -> Tokenizer:
        """The tokenizer."""
        return self.tokenizer

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the weighted loss of a batch of pictures."""
        images = batch["image"]
        output = self.tokenizer(images)
        losses = self.named_losses(images, output)
        total = self.total(losses)
        self.log("loss", total.detach(), prog_bar=True)
        if self.logging_step:
            terms = {k: v.detach() for k, v in losses.items()}
            self.log_details(terms | output.metrics, len(images))
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
        """Return the weighted sum.

        Raises:
            UserError: for a loss without a weight, or a weight without a loss.
        """
        weights = self.own_weights | self.loss_weights
        for name in losses:
            if name not in weights:
                raise UserError(
                    f"The tokenizer gives a loss {name!r} that has no weight; add "
                    f"+losses.{name}=W to the command (0 leaves it out)."
                )
        for name, weight in self.loss_weights.items():
            if weight and name not in losses:
                raise UserError(
                    f"losses.{name}={weight}, but this tokenizer gives no such loss."
                    f"{suggest(name, losses)} It gives: {', '.join(losses)}."
                )
        return torch.stack([weights[name] * value for name, value in losses.items()]).sum()

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
