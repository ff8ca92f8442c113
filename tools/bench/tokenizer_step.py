"""The training step of a tokenizer: both sides of its task, with the discriminator at work."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from released.vq_step import ReleasedStep
from torch import Tensor

from argen.build import build
from argen.errors import UserError
from argen.layers.gradient_checkpointing import enable_gradient_checkpointing
from argen.pretrained.vgg_lpips import VGG_PLACES, VGG_WIDTHS
from argen.runtime.flops import count_flops
from argen.runtime.presets import preset, preset_names
from argen.training.fit import FitSettings
from argen.training.tokenizer_task import TokenizerTask
from bench.cases import Case

# The objectives of tokenizers, by the start of the preset's name.
OBJECTIVES = {"llamagen_vq": "llamagen_vq"}


def is_tokenizer(name: str) -> bool:
    """Whether a preset is a tokenizer's, and no generator's."""
    return name in preset_names("tokenizer") and name not in preset_names("generator")


def objective_of(name: str) -> str:
    """Return the preset of what a tokenizer is trained on.

    Raises:
        UserError: for a tokenizer that none of the above covers.
    """
    for start, objective in OBJECTIVES.items():
        if name.startswith(start):
            return objective
    known = ", ".join(f"{start}..." for start in OBJECTIVES)
    raise UserError(f"The training step of the tokenizer {name} is not set up; there are {known}.")


def tokenizer_case(
    model: str,
    batch: int,
    device: torch.device,
    changes: Mapping[str, Any],
    *,
    precision: str,
    mode: str,
) -> Case:
    """Return the case of a tokenizer's preset, as `bench.train` does for a generator's."""
    task = tokenizer_task(model, device=device, changes=changes)
    own = TokenizerStep(task, precision, batch)
    call: Callable[[], None] = own
    flops = count_flops(own)
    if mode == "released":
        call = ReleasedStep.like(task.tokenizer, task.objective, own.images, precision)
    if "recompute" in mode:
        enable_gradient_checkpointing(task.network)
    if "compiled" in mode:
        task.compile_network()
    return Case(
        {"model": model, "precision": precision, "batch": batch, "mode": mode},
        call=call,
        units=batch,
        unit="images",
        flops=flops,
        dtype=precision,
    )


def tokenizer_task(
    model: str, *, device: torch.device, changes: Mapping[str, Any] | None = None
) -> TokenizerTask:
    """Return the task of a tokenizer with random weights, in the layout that argen trains in."""
    torch.manual_seed(0)
    config: Any = OmegaConf.merge(preset("tokenizer", model), dict(changes or {}))
    tokenizer = build(OmegaConf.to_container(config), trust=True)
    if FitSettings.defaults()["channels_last"]:
        tokenizer = tokenizer.to(memory_format=torch.channels_last)
    objective = preset("objective", objective_of(model))
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "vgg16.pth"
        torch.save(random_vgg16(), path)
        objective["image_terms"]["perceptual"]["vgg16"] = str(path)
        task = TokenizerTask(
            tokenizer,
            objective=build(objective, trust=True),
            # Adam as published: constant, without decay.
            optim=build({**preset("optim", "llamagen"), "weight_decay": 0.0}, trust=True),
            steps=1,
        )
    return task.to(device).train()


def random_vgg16() -> dict[str, Tensor]:
    """Return random weights by torchvision's names: He's, so that no map dies out."""
    weights, width, place = {}, 3, iter(VGG_PLACES)
    for widths in VGG_WIDTHS:
        for wider in widths:
            key = f"features.{next(place)}"
            weights[f"{key}.weight"] = torch.randn(wider, width, 3, 3) * (2 / (9 * width)) ** 0.5
            weights[f"{key}.bias"] = torch.zeros(wider)
            width = wider
    return weights


class TokenizerStep:
    """One step of both sides of a tokenizer's own task, as Lightning's loop takes it.

    The average of the weights is left out on both sides: the published script keeps none unless
    asked to, and argen's is a callback of the run.

    Args:
        task: on its device, in float32.
        precision: bfloat16 for autocast.
        batch: images a step.
    """

    def __init__(self, task: TokenizerTask, precision: str, batch: int) -> None:
        self.task, self.precision = task, precision
        self.step = task.objective.discriminator_start
        self.optimizers, self.schedules = task.configure_optimizers()
        draws = torch.Generator().manual_seed(0)
        images = torch.rand(batch, 3, *task.tokenizer.image_size, generator=draws) * 2 - 1
        self.images = images.to(next(task.tokenizer.parameters()).device)

    def __call__(self) -> None:
        """Make the step."""
        bfloat16 = self.precision == "bfloat16"
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=bfloat16):
            self.task.generator_and_discriminator_step(self.images, self.step, self._move)

    def _move(self, side: int, loss: Tensor) -> None:
        optimizer = self.optimizers[side]
        optimizer.zero_grad()
        loss.backward()
        self.task.on_before_optimizer_step(optimizer)  # clips
        optimizer.step()
        self.schedules[side]["scheduler"].step()
