"""Progress that fits where it is shown: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class PlainProgress(Callback):
    """Prints one line every few seconds.

    Args:
        title: what is being trained.
        seconds: least time between lines.
    """

    def __init__(self, title: str, *, seconds: float = 10.0) -> None:
        self.title, self.seconds = title, seconds
        self._start = self._shown = 0.0
        self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where and when this process began."""
        self._start = self._shown = time.monotonic()
        self._first = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line when it is time, and at the end."""
        now, step = time.monotonic(), trainer.global_step
        done = step >= trainer.max_steps
        if not trainer.is_global_zero or (now - self._shown < self.seconds and not done):
            return
        self._shown = now
        rate = (step - self._first) / max(1e-6, now - self._start)
        left = (trainer.max_steps - step) / max(1e-6, rate)
        shown = "  ".join(f"{k} {float(v):.4g}" for k, v in trainer.progress_bar_metrics.items())
        print(
            f"{self.title}: step {step}/{trainer.max_steps}  {rate:.1f} steps/s  "
            f"{left:.0f} s left  {shown}",
            flush=True,
        )


def progress(title: str) -> Callback:
    """Return a rich bar on a terminal, else plain lines."""
    return RichProgressBar(leave=True) if sys.stdout.isatty() else PlainProgress(title)
