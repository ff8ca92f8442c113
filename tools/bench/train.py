"""Seconds of a training step; the bound is its FLOPs at the machine's rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from argen.device import pick_device
from argen.errors import UserError
from argen.flops import count_flops
from argen.training.generator_task import GeneratorTask
from argen.training.optim import Optim
from argen.training.recompute import recompute_activations
from bench.cases import Case
from bench.models import generator, published
from bench.released.step import released_network

MODES = ("eager", "compiled", "recompute", "compiled_recompute", "released")


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
    own = TrainingStep(network, precision, batch)
    step: Step = own
    flops = count_flops(own)
    if mode == "released":
        released = released_network(model, network).to(device).train()
        call = partial(released, **own.batch)
        step = Step(released, call, released.optimizer(), precision)
    if "recompute" in mode:
        recompute_activations(network)
    if "compiled" in mode:
        own.task.compile_network()
    return Case(
        {"model": model, "precision": precision, "batch": batch, "mode": mode},
        call=step,
        units=batch * network.spec.length,
        unit="tokens",
        flops=flops,
        dtype=precision,
        bases={
            "x released": {"mode": "released"},
            "x float32": {"precision": "float32"},
            **({} if mode == "released" else {"x eager": {"mode": "eager"}}),
        },
    )


class Step:
    """Forward, backward, clipping and the optimiser.

    Args:
        network: on its device, in float32.
        loss: makes the loss.
        optimizer: of the network's weights.
        precision: bfloat16 for autocast.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[], Tensor],
        optimizer: torch.optim.Optimizer,
        precision: str,
    ) -> None:
        self.network, self.loss = network, loss
        self.optimizer, self.precision = optimizer, precision
        self.device = next(network.parameters()).device

    def __call__(self) -> None:
        """Make the step."""
        bfloat16 = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class TrainingStep(Step):
    """One step of a generator's own task on random codes, labels dropped at the usual rate.

    Args:
        network: on its device, in float32.
        precision: bfloat16 for autocast.
        batch: pictures a step.
    """

    def __init__(self, network: Any, precision: str, batch: int) -> None:
        device, spec = next(network.parameters()).device, network.spec
        self.task = GeneratorTask(network, optim=Optim(), steps=1)
        super().__init__(network, self._loss, self.task.optim.optimizer(network), precision)
        shape = spec.code_shape(batch)
        if spec.kind == "continuous":
            codes = torch.randn(shape, device=device)
        else:
            least = min(min(s.vocab_sizes) for s in spec.segments)
            codes = torch.randint(least, shape, device=device)
        label = torch.arange(batch, device=device) % network.conditioner.num_classes
        self.batch = {"codes": codes, "label": label}

    def _loss(self) -> Tensor:
        label, rate = self.batch["label"], self.task.generator.conditioner.drop_rate
        drop_B = torch.rand(len(label), device=label.device) < rate
        return self.task.loss(self.batch, drop_B).loss
