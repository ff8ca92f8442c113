"""Run one stage: a Lightning task over a fixed number of steps, resumed where it stopped."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer

from argen.build import build
from argen.data.tar_stream import TarStream
from argen.errors import Preempted, UserError
from argen.generators.base import Generator
from argen.generators.drafter.feature_drafter import FeatureDrafter
from argen.layers.gradient_checkpointing import enable_gradient_checkpointing
from argen.runtime.device import pick_device, pick_precision
from argen.training.checkpoints import LAST, SafeCheckpointIO, newest_valid
from argen.training.code_tasks import DrafterTask
from argen.training.ema import EMA
from argen.training.finite import FiniteSteps
from argen.training.loggers import make_logger
from argen.training.progress import progress
from argen.training.sharding import ShardedEMA, ShardedGeneratorTask, sharded_strategy
from argen.training.signals import StopOnSignal
from argen.training.stream import Stream
from argen.training.task import Task
from argen.training.throughput import Throughput, device_peak, training_flops

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitSettings:
    """How long and how a stage is trained; `configs/train.yaml` explains each field."""

    steps: int
    batch_size: int
    epochs: float | None = None
    global_batch: int | None = None
    overfit: int = 0
    workers: int = 0
    ema: float = 0.999
    val_every: int = 1000
    save_every: int = 500
    channels_last: bool = True
    compile: bool = False
    gradient_checkpointing: bool = False
    max_skipped: int = 10
    trainer: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the plain settings that have a default."""
        return {f.name: f.default for f in fields(cls) if f.default is not MISSING}

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "val_every", "save_every", "max_skipped"):
            if getattr(self, name) < 1:
                raise UserError(f"fit.{name}={getattr(self, name)} must be at least 1.")
        if self.overfit < 0:
            raise UserError(f"fit.overfit={self.overfit} must be a number of samples, or 0.")
        if not 0 <= self.ema < 1:
            raise UserError(f"fit.ema={self.ema} must lie in [0, 1); 0 keeps no average.")


def fit(
    task: Task,
    stream: Stream,
    settings: FitSettings,
    *,
    title: str,
    directory: Path,
    callbacks: Sequence[Callback] = (),
    config: dict[str, Any] | None = None,
    resume: bool = True,
) -> float:
    """Train until `settings.steps`; the task is left holding the averaged weights.

    Args:
        task: what is trained.
        stream: its batches.
        settings: how.
        title: shown with the progress.
        directory: gets `checkpoints/last.ckpt`, from which a later call goes on.
        callbacks: more of them.
        config: resolved configuration, for the logger.
        resume: go on from a checkpoint that is there; refuse to start otherwise.

    Returns:
        seconds of training, those of interrupted runs up to their last checkpoint included.

    Raises:
        UserError: checkpoints that may not be resumed from or are all damaged; too many steps that
            are not finite.
        Preempted: a signal ended training, after a checkpoint.
    """
    _quiet()
    start = time.perf_counter()
    sharded = isinstance(task, ShardedGeneratorTask)
    averaging: type[EMA] | type[ShardedEMA] = ShardedEMA if sharded else EMA
    timer, ema = Timer(), averaging(settings.ema) if settings.ema else None
    folder = directory / "checkpoints"
    last = _checkpoint(folder, title, resume=resume)
    stop = StopOnSignal(folder / LAST)
    checkpoint = ModelCheckpoint(
        folder,
        filename="last",
        every_n_train_steps=settings.save_every,
        save_top_k=1,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    options = {k: build(v, trust=True) for k, v in settings.trainer.items() if v is not None}
    device = pick_device(str(options.get("accelerator", "auto")))
    options["precision"] = pick_precision(str(options.get("precision", "auto")), device)
    stream.even = sharded
    if sharded:
        nodes = int(options.get("num_nodes", 1))
        options["strategy"] = sharded_strategy(options.get("devices", "auto"), nodes)
    elif options.get("strategy") == "fsdp2":
        log.info("%s: trainer=fsdp2 cuts up generators; this stage runs by ddp", title)
        options["strategy"] = "ddp"
    if options.get("strategy") == "ddp" and task.leaves_unused:
        options["strategy"] = "ddp_find_unused_parameters_true"
    stream.accumulate = int(options.get("accumulate_grad_batches", 1))
    if stream.accumulate < 1:
        raise UserError(f"trainer.accumulate_grad_batches={stream.accumulate} must be at least 1.")
    task.accumulate = stream.accumulate
    if not task.automatic_optimization:
        options.pop("accumulate_grad_batches", None)  # Lightning refuses; the task does it itself
    trainer = Trainer(
        **options,
        max_steps=settings.steps,
        max_epochs=-1,
        val_check_interval=settings.val_every * stream.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stdout.isatty(),
        logger=make_logger(settings.logger, directory, config),
        # Averaging comes last: the callbacks before it see its weights when validation ends.
        callbacks=[
            *(progress(title), timer, *callbacks, *_built(settings.callbacks)),
            *(checkpoint, stop, *([ema] if ema else [])),
        ],
        plugins=[SafeCheckpointIO()],
        default_root_dir=directory,
    )
    task.log_every = int(options.get("log_every_n_steps", task.log_every))
    if settings.gradient_checkpointing:
        enable_gradient_checkpointing(task.network)
    if settings.compile:
        task.compile_network()
    task.finite = FiniteSteps(settings.max_skipped)
    trainer.callbacks.insert(0, _rates(task, stream, settings, trainer, device))  # type: ignore[attr-defined]
    _check_global_batch(settings, trainer, stream.accumulate)
    trainer.fit(task, datamodule=stream, ckpt_path=str(last) if last else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if stop.received is not None:
        raise Preempted(f"{stop.received}: {title} stopped and saved; the same command goes on.")
    if ema is not None:
        ema.copy_to(task)
    earlier = float(timer._offset) if last else 0.0
    return earlier + time.perf_counter() - start


def _built(callbacks: Mapping[str, Any]) -> list[Callback]:
    """Return what `configs/callbacks` describes.

    Raises:
        UserError: one of them is no callback of Lightning's.
    """
    made = [build(config, trust=True) for config in callbacks.values() if config]
    for name, callback in zip(callbacks, made):
        if not isinstance(callback, Callback):
            raise UserError(f"callbacks.{name} is no callback: give callbacks.{name}._target_.")
    return made


def _check_global_batch(settings: FitSettings, trainer: Trainer, accumulate: int) -> None:
    """Raise unless the ranks that really run take the batch that was asked for."""
    found = settings.batch_size * trainer.world_size * accumulate
    if settings.global_batch is not None and found != settings.global_batch:
        raise UserError(
            f"fit.global_batch={settings.global_batch} was shared out for other processes than the "
            f"{trainer.world_size} that run: say how many with trainer.devices= and "
            "trainer.num_nodes=."
        )


def _checkpoint(folder: Path, title: str, *, resume: bool) -> Path | None:
    """Return what a run goes on from, and say which and why; None for a fresh start."""
    found, passed_over = newest_valid(folder)
    for line in passed_over:
        log.warning("%s: %s", title, line)
    if found is None and passed_over:
        raise UserError(
            f"No checkpoint in {folder} is whole ({'; '.join(passed_over)}). Delete that folder to "
            "train from the start, or choose another name=."
        )
    if found is not None and not resume:
        raise UserError(
            f"{found} is there, and auto_resume=false starts nothing over it. Choose another "
            "name=, delete the run's directory, or leave auto_resume out to go on."
        )
    if found is not None:
        log.info("%s: going on from %s", title, found)
    return found


def _rates(
    task: Task, stream: Stream, settings: FitSettings, trainer: Trainer, device: torch.device
) -> Throughput:
    """Return the callback that logs how fast the run is."""
    network = task.network
    tokens = network.spec.length if isinstance(network, Generator | FeatureDrafter) else 0
    peak, flops = device_peak(device, str(trainer.precision)), 0.0
    # Most matmuls of a drafter's step are its target's, which are not counted.
    counted = not isinstance(stream.train, TarStream) and not isinstance(task, DrafterTask)
    if peak is not None and counted:
        flops = training_flops(network, stream.train[0], device)
    return Throughput(
        batch_size=settings.batch_size * trainer.world_size * stream.accumulate,
        tokens=tokens,
        flops=flops,
        peak=None if peak is None else peak * trainer.world_size,
    )


def _quiet() -> None:
    """Silence advice that does not apply here."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in (
        ".*LeafSpec.*",
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*set_vital.*",
        ".*`Trainer.fit.*mid-epoch.*",
        ".*is smaller than the logging interval.*",
        ".*in eval mode at the start of training.*",  # frozen perceptual networks
        "(?s).*Using ModelCheckpoint with manual optimization.*",
        ".*The `?srun`? command is available.*",
    ):
        warnings.filterwarnings("ignore", pattern)
