"""Seconds from the command to the first image of a saved model, start-up included."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from argen.pipeline import Pipeline
from argen.runtime.device import pick_device
from bench.cases import Case
from bench.models import check, generator, published, tokenizer


def groups(settings: Mapping[str, Any]) -> Iterator[list[Case]]:
    """Yield a group a model; its precisions take turns."""
    device = pick_device(settings["device"])
    check(settings)
    for model in settings["models"]:
        with TemporaryDirectory() as place:
            save(model, Path(place) / "model", settings["changes"])
            yield [
                Case(
                    {"model": model, "precision": precision},
                    call=partial(
                        command,
                        Path(place),
                        device,
                        precision,
                        settings["threads"],
                        settings["more"],
                    ),
                    units=1,
                    unit="images",
                )
                for precision in settings["precisions"]
            ]


def save(model: str, directory: Path, changes: Mapping[str, Any]) -> None:
    """Write a model directory of a published size with random weights."""
    cpu, how = torch.device("cpu"), published(model)
    Pipeline(
        tokenizer=tokenizer(how.tokenizer, device=cpu, dtype=torch.float32, changes=how.changes),
        generator=generator(model, device=cpu, dtype=torch.float32, **changes),
        defaults=how.settings,
    ).save(directory)


def command(
    place: Path, device: torch.device, precision: str, threads: int | None, more: list[str]
) -> dict[str, float]:
    """Draw one image by command; returns the CPU seconds that it took."""
    out = place / f"out-{precision}"
    words = [f"model={place / 'model'}", "classes=[0]", "n=1", f"precision={precision}"]
    words += [f"device={device.type}", f"out={out}", *more]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    process = subprocess.Popen(
        [sys.executable, "-m", "argen.sample", *words],
        stdout=subprocess.DEVNULL,
        env=environment,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not (out / "grid.png").is_file():
        raise RuntimeError(f"argen.sample {' '.join(words)} ended with {process.returncode}")
    return {"CPU s": usage.ru_utime + usage.ru_stime}
