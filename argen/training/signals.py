"""SIGTERM, SIGUSR1, SIGUSR2: finish the step, save, and stop for a scheduler to start again."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

log = logging.getLogger(__name__)
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2")  # the last is what submitit asks Slurm for
AGREE_EVERY = 10  # steps between the ranks' asking each other; a signal may reach one of them alone


class StopOnSignal(Checkpoint):
    """Saves after the step in which a signal came, then ends training.

    Never saves inside the handler, which may run in the middle of a step or of a validation. As a
    `Checkpoint` it comes after the averaging of weights, whose state it saves.

    Args:
        path: where the checkpoint goes.

    Attributes:
        received: the signal's name, once training was stopped for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.received: str | None = None
        self._pending: str | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, in place of what Lightning installed."""
        if threading.current_thread() is not threading.main_thread():
            return  # handlers belong to the main thread
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None:
                self._before[number] = signal.signal(number, self._receive)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop, on all ranks after the same step."""
        stop = self._pending is not None
        if trainer.world_size > 1:
            if trainer.global_step % AGREE_EVERY:
                return
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if not stop or self.received is not None:
            return
        self.received = self._pending or "a signal to another rank"
        trainer.save_checkpoint(self.path)
        log.warning("%s: saved step %d in %s", self.received, trainer.global_step, self.path)
        trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop listening."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: Any) -> None:
        self._pending = signal.Signals(number).name
