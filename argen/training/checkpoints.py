"""Checkpoints that survive kills and full disks: written aside, renamed, the one before kept."""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

log = logging.getLogger(__name__)
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class SafeCheckpointIO(TorchCheckpointIO):
    """Never leaves a run without a whole checkpoint.

    A checkpoint is written to a temporary name beside its place, flushed to the disk and renamed;
    the one that stood there is kept as `previous.ckpt`. Weights that are not finite are not
    written, and where the disk is full the run goes on with the checkpoint it has: both are said
    in the log, and counted.

    Attributes:
        refused: checkpoints that were not written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refused = 0

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint in the place of the last one."""
        bad = not_finite(checkpoint.get("state_dict", {}))
        step = checkpoint.get("global_step")
        if bad is not None:
            self.refused += 1
            log.error("step %s: no checkpoint written, %s is not finite", step, bad)
            return
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if place.is_file():
                _keep(place, place.with_name(PREVIOUS))
            os.replace(temporary, place)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into the latter
            temporary.unlink(missing_ok=True)
            self.refused += 1
            log.error(
                "step %s: the checkpoint could not be written (%s); training goes on, and would "
                "resume from the one before. Free some space in %s.",
                step,
                str(error).splitlines()[0],
                place.parent,
            )


def newest_valid(directory: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint of a run, and why any newer one was passed over.

    Leftovers of writes that were killed are removed, damaged files renamed.
    """
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    passed_over: list[str] = []
    for name in (LAST, PREVIOUS):
        path = directory / name
        if not path.is_file():
            continue
        damage = damage_of(path)
        if damage is None:
            return path, passed_over
        # Out of the way: the next checkpoint would otherwise keep it in the place of a whole one.
        os.replace(path, path.with_suffix(".damaged"))
        passed_over.append(f"{path} was damaged ({damage}), now {path.stem}.damaged")
    return None, passed_over


def damage_of(path: Path) -> str | None:
    """Return what is wrong with a checkpoint file, by its checksums; None when it is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (zipfile.BadZipFile, OSError, zlib.error) as error:
        return str(error) or type(error).__name__
    return None if part is None else f"{part} fails its checksum"


def not_finite(weights: dict[str, Any]) -> str | None:
    """Return the name of the first tensor that holds NaN or an infinity."""
    for name, value in weights.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            # A sum is finite if all are, but for overflow: only then is each looked at.
            if bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all()):
                continue
            return name
    return None


def _keep(path: Path, kept: Path) -> None:
    """Let `kept` be what `path` is, at every moment one whole file."""
    link = kept.with_name(f".{kept.name}.{os.getpid()}.tmp")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
    except OSError:  # no hard links here; for a moment `previous` alone is whole
        os.replace(path, kept)
        return
    os.replace(link, kept)
