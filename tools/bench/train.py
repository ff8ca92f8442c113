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
    """Yield a group a model: its precisions and modes take turns, a network each mode."""
    device = pick_device(settings["device"])
    for mode in settings["modes"]:
        if mode not in MODES:
            raise UserError(f"There is no mode {mode!r}; choose from {', '.join(MODES)}.")
    for model in settings["models"]:
        published(model)
    for model in settings["models"]:
        make = partial(_network, model, device, settings["changes"])
        steps: dict[str, Step] = {"eager": TrainingStep(make(), settings["batch"])}
        flops = count_flops(partial(steps["eager"], "float32"))
        # Precisions share a network: a copy is weights and two moments, 12 bytes a parameter.
        for mode in settings["modes"]:
            if mode != "eager":
                steps[mode] = _step(model, mode, steps["eager"], make)
        if "eager" not in settings["modes"]:
            del steps["eager"]
        yield [
            _case(steps[mode], model, precision, mode, flops)
            for precision in settings["precisions"]
            for mode in settings["modes"]
        ]
        steps.clear()  # before the next model's are made


def _network(model: str, device: torch.device, changes: Mapping[str, Any]) -> Any:
    return generator(model, device=device, dtype=torch.float32, **changes).train()


def _step(model: str, mode: str, eager: TrainingStep, make: Callable[[], Any]) -> Step:
    if mode == "released":
        released = released_network(model, eager.network).to(eager.device).train()
        loss = partial(released, **eager.batch)
        return Step(released, loss, released.optimizer(), eager.batch["codes"])
    step = TrainingStep(make(), eager.pictures)
    if "recompute" in mode:
        recompute_activations(step.network)
    if "compiled" in mode:
        step.task.compile_network()
    return step


def _case(step: Step, model: str, precision: str, mode: str, flops: float) -> Case:
    return Case(
        {"model": model, "precision": precision, "batch": step.pictures, "mode": mode},
        call=partial(step, precision),
        units=step.tokens,
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
        codes: of the batch, (B, L[, C]).
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[], Tensor],
        optimizer: torch.optim.Optimizer,
        codes: Tensor,
    ) -> None:
        self.network, self.loss, self.optimizer = network, loss, optimizer
        self.device, self.pictures, self.tokens = codes.device, len(codes), codes.shape[:2].numel()

    def __call__(self, precision: str) -> None:
        """Make the step, under autocast in bfloat16."""
        bfloat16 = precision == "bfloat16"
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
        batch: pictures a step.
    """

    def __init__(self, network: Any, batch: int) -> None:
        device, spec = next(network.parameters()).device, network.spec
        self.task = GeneratorTask(network, optim=Optim(), steps=1)
        shape = spec.code_shape(batch)
        if spec.kind == "continuous":
            codes = torch.randn(shape, device=device)
        else:
            least = min(min(s.vocab_sizes) for s in spec.segments)
            codes = torch.randint(least, shape, device=device)
        label = torch.arange(batch, device=device) % network.conditioner.num_classes
        self.batch = {"codes": codes, "label": label}
        super().__init__(network, self._loss, self.task.optim.optimizer(network), codes)

    def _loss(self) -> Tensor:
        label, rate = self.batch["label"], self.task.generator.conditioner.drop_rate
        drop_B = torch.rand(len(label), device=label.device) < rate
        return self.task.loss(self.batch, drop_B).loss
