"""How long a run is and how large its batches are: a paper's numbers on the devices there are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import torch

from argen.errors import UserError
from argen.runtime.device import pick_device
from argen.training.fit import FitSettings


def processes(trainer: Mapping[str, Any]) -> int:
    """Return how many processes train, one a device, by the settings of the trainer.

    Under torchrun, Slurm and submitit that is what they started.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1:
        return started
    devices, nodes = trainer.get("devices") or 1, int(trainer.get("num_nodes") or 1)
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices) * nodes
    if str(devices) in ("auto", "-1"):
        device = pick_device(str(trainer.get("accelerator", "auto")))
        devices = torch.cuda.device_count() if device.type == "cuda" else 1
    elif isinstance(devices, str) and "," in devices:
        devices = len([part for part in devices.split(",") if part.strip()])
    return int(devices) * nodes


def planned(fit: Mapping[str, Any], *, samples: int, trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a fit with `steps` and `batch_size` worked out.

    `global_batch` is shared out evenly: batch_size = global_batch / (processes * accumulate). As
    long as it is that of a paper, so are the steps and the learning rate, whatever the devices.
    `epochs` are whole passes: steps = epochs * (samples // batch of all processes), rounded.

    Args:
        fit: the settings; `steps` and `batch_size` are used where the others are None.
        samples: how many training samples there are; read only for `epochs`.
        trainer: settings of the trainer.

    Raises:
        UserError: the batch cannot be shared out evenly; nothing is left of an epoch.
    """
    plan = dict(fit)
    accumulate = int(trainer.get("accumulate_grad_batches") or 1)
    shares = processes(trainer) * max(1, accumulate)
    wanted, epochs = plan.get("global_batch"), plan.get("epochs")
    if wanted is not None:
        if wanted < 1 or wanted % shares:
            near = max(shares, round(wanted / shares) * shares)
            raise UserError(
                f"fit.global_batch={wanted} cannot be shared out evenly over {shares} batches a "
                f"step ({processes(trainer)} processes, trainer.accumulate_grad_batches="
                f"{accumulate}): change trainer.devices or trainer.accumulate_grad_batches so that "
                f"their product divides it, or take fit.global_batch={near}."
            )
        plan["batch_size"] = wanted // shares
    if epochs is not None:
        if epochs <= 0:
            raise UserError(f"fit.epochs={epochs} must be positive.")
        batch = plan["batch_size"] * shares
        if samples < batch:
            raise UserError(
                f"fit.epochs={epochs}: {samples} training samples do not fill one batch of "
                f"{batch}; lower fit.global_batch or fit.batch_size, or give fit.steps."
            )
        plan["steps"] = max(1, round(epochs * (samples // batch)))
    return plan


def fit_settings(stage: Mapping[str, Any], samples: Sized) -> FitSettings:
    """Return how a stage is trained, from its configuration.

    Args:
        stage: its configuration.
        samples: what it trains on; counted only where the length is given in epochs.
    """
    counted = len(samples) if stage["fit"].get("epochs") is not None else 0
    plan = planned(stage["fit"], samples=counted, trainer=stage["trainer"])
    given = {key: stage[key] for key in ("trainer", "logger", "callbacks") if key in stage}
    return FitSettings(**plan, **given)
