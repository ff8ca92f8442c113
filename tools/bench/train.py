"""Seconds of a training step; the bound is its FLOPs at the machine's rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from released.step import released_network
from torch import Tensor, nn

from argen.errors import UserError
from argen.layers.gradient_checkpointing import enable_gradient_checkpointing
from argen.runtime.device import pick_device
from argen.runtime.flops import count_flops
from argen.training.code_tasks import GeneratorTask
from argen.training.optim import Optim
from bench.cases import Case
from bench.models import generator, published
from bench.tokenizer_step import is_tokenizer, objective_of, tokenizer_case

MODES = ("eager", "compiled", "recompute", "compiled_recompute", "released")


def groups(settings: Mapping[str, Any]) -> Iterator[list[Case]]:
    """Yield a group a model: its precisions and modes take turns, a network each mode."""
    device = pick_device(settings["device"])
    for mode in settings["modes"]:
        if mode not in MODES:
            raise UserError(f"There is no mode {mode!r}; choose from {', '.join(MODES)}.")
    for model in settings["models"]:
        objective_of(model) if is_tokenizer(model) else published(model)
    rest = settings["batch"], device, settings["changes"]
    for model in settings["models"]:
        if is_tokenizer(model):
            make = partial(tokenizer_case, model, *rest)
        else:
            make = partial(_case, _Steps(model, *rest))
        yield [
            _compared(make(precision=precision, mode=mode))
            for precision in settings["precisions"]
            for mode in settings["modes"]
        ]


class _Steps:
    """A generator's steps, one network a mode.

    Precisions share it: a copy of weights and two moments is 12 bytes a parameter.
    """

    def __init__(
        self, model: str, batch: int, device: torch.device, changes: Mapping[str, Any]
    ) -> None:
        self.model = model
        self._network = partial(generator, model, device=device, dtype=torch.float32, **changes)
        self._eager = TrainingStep(self._network().train(), batch)
        self._made: dict[str, Step] = {"eager": self._eager}
        self.flops = count_flops(partial(self._eager, "float32"))

    def __getitem__(self, mode: str) -> Step:
        if mode not in self._made:
            self._made[mode] = self._make(mode)
        return self._made[mode]

    def _make(self, mode: str) -> Step:
        eager = self._eager
        if mode == "released":
            released = released_network(self.model, eager.network).to(eager.device).train()
            loss = partial(released, **eager.batch)
            return Step(released, loss, released.optimizer(), eager.batch["codes"])
        step = TrainingStep(self._network().train(), eager.images)
        if "recompute" in mode:
            enable_gradient_checkpointing(step.network)
        if "compiled" in mode:
            step.task.compile_network()
        return step


def _case(steps: _Steps, *, precision: str, mode: str) -> Case:
    step = steps[mode]
    return Case(
        {"model": steps.model, "precision": precision, "batch": step.images, "mode": mode},
        call=partial(step, precision),
        units=step.tokens,
        unit="tokens",
        flops=steps.flops,
        dtype=precision,
    )


def _compared(case: Case) -> Case:
    """Return a case with the rows that it is compared with."""
    eager = {} if case.labels["mode"] == "released" else {"x eager": {"mode": "eager"}}
    bases = {"x released": {"mode": "released"}, "x float32": {"precision": "float32"}, **eager}
    return replace(case, bases=bases)


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
        self.device, self.images, self.tokens = codes.device, len(codes), codes.shape[:2].numel()

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
        batch: images a step.
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
        super().__init__(network, self._loss, self.task.optim.make_optimizer(network), codes)

    def _loss(self) -> Tensor:
        label, rate = self.batch["label"], self.task.generator.conditioner.drop_rate
        drop_B = torch.rand(len(label), device=label.device) < rate
        return self.task.loss(self.batch, drop_B).loss
