"""How fast a run is: images and tokens a second, and the share of the device's peak (MFU)."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import default_collate

from argen.runtime.flops import count_flops, peak_flops


class Throughput(Callback):
    """Logs `images_per_second`, `tokens_per_second` and `mfu` with the other details.

    The clock stops while a run validates. MFU counts the matmuls of the plain forward and
    backward pass of the trained network alone, not what checkpointing repeats, nor losses' own
    networks (arXiv 2204.02311, appendix B).

    Args:
        batch_size: samples of a step, over all ranks.
        tokens: codes a sample; 0 for stages that train on images.
        flops: those of the matmuls of a training step a sample, see `training_flops`.
        peak: FLOPs a second of all devices together; None where it is not known.
    """

    def __init__(
        self, *, batch_size: int, tokens: int = 0, flops: float = 0.0, peak: float | None = None
    ) -> None:
        self.batch_size, self.tokens, self.flops, self.peak = batch_size, tokens, flops, peak
        self._since = self._paused = self._pause = 0.0
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since, self._paused, self._step = time.perf_counter(), 0.0, trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._pause = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on."""
        self._paused += time.perf_counter() - self._pause

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rates since the last time."""
        step, every = trainer.global_step, int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if step == self._step or step % every:
            return
        now = time.perf_counter()
        seconds = max(1e-9, now - self._since - self._paused)
        rate = (step - self._step) * self.batch_size / seconds
        values = {"images_per_second": rate}
        if self.tokens:
            values["tokens_per_second"] = rate * self.tokens
        if self.peak and self.flops:
            values["mfu"] = rate * self.flops / self.peak
        pl_module.log_dict(values)
        self._since, self._paused, self._step = now, 0.0, step


def training_flops(network: nn.Module, sample: dict[str, Any], device: torch.device) -> float:
    """Return the FLOPs of the matmuls of one sample's forward and backward pass.

    They are counted on a copy, and nothing that the run draws from is touched.

    Args:
        network: a generator, or a tokenizer.
        sample: an item of the data it trains on.
        device: where to count.
    """
    twin: Any = copy.deepcopy(network).to(device).train()
    batch = {key: value.to(device) for key, value in default_collate([sample, sample]).items()}

    def step() -> None:
        if "codes" in batch:
            cond = twin.conditioner(twin.conditioner.of_batch(batch))
            twin.loss(batch["codes"], cond).loss.backward()
        else:
            twin(batch["image"]).images.square().mean().backward()

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return count_flops(step) / 2


def device_peak(device: torch.device, precision: str) -> float | None:
    """Return the data sheet's FLOPs a second of a device under Lightning's `precision`."""
    if device.type != "cuda":
        return None
    half = "bf16" in precision or "16" in precision
    name = torch.bfloat16 if "bf16" in precision else torch.float16 if half else torch.float32
    return peak_flops(torch.cuda.get_device_name(device), name)
