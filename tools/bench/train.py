"""Seconds of a training step; the bound is its FLOPs at the machine's rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from argen.device import pick_device
from argen.errors import UserError
from argen.flops import count_flops
from argen.training.generator_task import GeneratorTask
from argen.training.optim import Optim
from argen.training.recompute import recompute_activations
from bench.cases import Case
from bench.models import generator, published

MODES = ("eager", "compiled", "recompute", "compiled_recompute")


def groups(settings: Mapping[str, Any]) -> Iterator[list[Case]]:
    """Yield a group a model: its precisions and modes take turns on networks of their own."""
    device = pick_device(settings["device"])
    for mode in settings["modes"]:
        if mode not in MODES:
            raise UserError(f"There is no mode {mode!r}; choose from {', '.join(MODES)}.")
    for model in settings["models"]:
        published(model)
    for model in settings["models"]:
        yield [
            _case(model, precision, mode, settings["batch"], device, settings["changes"])
            for precision in settings["precisions"]
            for mode in settings["modes"]
        ]


def _case(
    model: str,
    precision: str,
    mode: str,
    batch: int,
    device: torch.device,
    changes: Mapping[str, Any],
) -> Case:
    network = generator(model, device=device, dtype=torch.float32, **changes).train()
    step = TrainingStep(network, precision, batch)
    flops = count_flops(step)
    if "recompute" in mode:
        recompute_activations(network)
    if "compiled" in mode:
        step.task.compile_network()
    return Case(
        {"model": model, "precision": precision, "batch": batch, "mode": mode},
        call=step,
        units=batch * network.spec.length,
        unit="tokens",
        flops=flops,
        dtype=precision,
        base={"precision": "float32", "mode": "eager"},
    )


class TrainingStep:
    """One step of a generator's own task on random codes.

    Args:
        network: on its device, in float32.
        precision: bfloat16 for autocast.
        batch: pictures a step.
    """

    def __init__(self, network: Any, precision: str, batch: int) -> None:
        device = next(network.parameters()).device
        self.task = GeneratorTask(network, optim=Optim(), steps=1)
        self.optimizer = self.task.optim.optimizer(network)
        self.precision, self.device = precision, device
        spec = network.spec
        shape = spec.code_shape(batch)
        if spec.kind == "continuous":
            codes = torch.randn(shape, device=device)
        else:
            least = min(min(s.vocab_sizes) for s in spec.segments)
            codes = torch.randint(least, shape, device=device)
        label = torch.arange(batch, device=device) % network.conditioner.num_classes
        self.batch = {"codes": codes, "label": label}

    def __call__(self) -> None:
        """Make the step."""
        drop_B = torch.zeros(len(self.batch["label"]), dtype=torch.bool, device=self.device)
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )
        with autocast:
            loss = self.task.loss(self.batch, drop_B).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.task.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
