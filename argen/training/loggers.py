"""Where the numbers of a run go: a CSV file, Weights & Biases, TensorBoard, or nowhere."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from argen.build import TARGET, build, locate
from argen.errors import UserError
from argen.runtime.distributed import is_rank_zero


def make_logger(
    settings: dict[str, Any], directory: Path, config: dict[str, Any] | None
) -> Logger | bool:
    """Return the logger that `configs/logger/*.yaml` describes; False for none.

    Args:
        settings: `kind`, and for wandb `project` and `offline`; or `_target_`, any logger of
            Lightning's kind, and its arguments (`save_dir` is the stage's directory if left out).
        directory: of the stage; a resumed run writes on where it stopped.
        config: what the run was started with, kept beside the numbers where the logger can.
    """
    if TARGET in settings:
        return _own_logger(settings, directory)
    kind = settings.get("kind", "csv")
    if kind == "none":
        return False
    if kind == "csv":
        return CSVLogger(directory, name="", version="logs")
    if kind == "tensorboard":
        if find_spec("tensorboard") is None:
            raise UserError(
                "logger=tensorboard needs the package tensorboard: pip install 'argen[tensorboard]'"
            )
        return TensorBoardLogger(directory, name="", version="tensorboard")
    if kind == "wandb":
        identity = directory / "wandb_id"
        logger = WandbLogger(
            name=f"{directory.parent.name}-{directory.name}",
            project=settings.get("project", "argen"),
            offline=bool(settings.get("offline", False)),
            save_dir=directory,
            id=identity.read_text().strip() if identity.is_file() else None,
            config=config,
        )
        if is_rank_zero():  # a resumed run goes on in the same chart
            identity.write_text(str(logger.experiment.id))
        return logger
    raise UserError(
        f"Unknown logger {kind!r}; use logger=csv, wandb, wandb_offline, tensorboard or none."
    )


def _own_logger(settings: dict[str, Any], directory: Path) -> Logger:
    given = {name: value for name, value in settings.items() if name != "kind"}
    takes = inspect.signature(locate(settings[TARGET], trust=True)).parameters
    if "save_dir" in takes and "save_dir" not in given:
        given["save_dir"] = str(directory)
    logger = build(given, trust=True)
    if not isinstance(logger, Logger):
        raise UserError(f"logger._target_={settings[TARGET]} is no logger of Lightning's kind.")
    return logger


def log_image(trainer: Trainer, name: str, image: Any) -> None:
    """Hand a PIL image to the loggers that take images."""
    import numpy as np

    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key=name, images=[image], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(
                name, np.asarray(image), trainer.global_step, dataformats="HWC"
            )
