"""Replays xAR: cell order, rotary tables, loss with recorded draws, both samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.generators.heads.flow import Velocity, interpolate
from argen.generators.xar import XAR
from argen.generators.xar.xar import XARNoise
from argen.interop import xar
from argen.interop.base import Imported
from argen.tokenizers.kl import patchify, unpatchify
from replays.fixture import Bound, Fixture

SYSTEMS = ("xar",)


class RecordedNoise:
    """The recorded draws of a sampling run: a start and steps for each cell."""

    def __init__(self, fixture: Fixture, group: str) -> None:
        self.fixture, self.group, self.cell = fixture, group, -1

    def normal(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return (B, n, C); `use` 0 starts the next cell."""
        self.cell += use == 0
        if use == 0:
            return self.fixture[f"{self.group}/init_noise"][self.cell]
        return self.fixture[f"{self.group}/step_noise"][self.cell, use - 1]

    def uniform(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Not drawn."""
        raise NotImplementedError

    gumbel = uniform


class BothHalves(Guidance):
    """xAR's guidance: null rows always run, and count where the weight exceeds 1."""

    @property
    def active(self) -> bool:
        """Always, even for a scale of 1."""
        return True

    def ramp(self, step: int, steps: int) -> float:
        """Return the weight as recorded: 1 at the first cell, the scale at the last."""
        assert isinstance(self.scale, int | float)
        return 1.0 + (self.scale - 1.0) * step / max(1, steps - 1)

    def weight(self, step: int, steps: int) -> float | None:
        """Return the weight as applied."""
        return max(1.0, self.ramp(step, steps))


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of an `xAR` fixture."""
    patch = fixture.config.get("patch_size", 1)
    weights = xar.generator_weights(fixture.weights)
    imported = Imported(xar.generator_config(fixture.config), weights, fixture.name)
    model = imported.build()
    assert isinstance(model, XAR)
    found = {
        "rope/cos": model.network.first_rope[..., 0].repeat_interleave(2, dim=-1),
        "rope/sin": model.network.first_rope[..., 1].repeat_interleave(2, dim=-1),
    }
    codes = None
    if "latents" in fixture.io:
        codes = patchify(fixture["latents"], patch)
        found["tokens_cell_order"] = model.entities.sequence(codes)
    if codes is not None and "train/noise" in fixture.io:
        found |= _training(model, imported, fixture, codes)
    with torch.no_grad():
        for group, settings in fixture.card.get("sampling", {}).items():
            if f"{group}/init_noise" not in fixture.io:
                continue
            sampler = settings["sampler"].removesuffix("_sampler")
            config = xar.generator_config(
                fixture.config, sampler=sampler, steps=int(settings["num_steps"])
            )
            drawn = Imported(config, weights, fixture.name).build()
            assert isinstance(drawn, XAR)
            drawn.head.interval = (
                float(settings.get("guidance_low", 0.0)),
                float(settings.get("guidance_high", 1.0)),
            )
            found |= _sample(drawn, fixture, group, float(settings["cfg"]), patch)
    return found


def _training(model: XAR, imported: Imported, fixture: Fixture, codes: Tensor) -> dict[str, Tensor]:
    B, labels = len(codes), fixture["labels"]
    t_BE = torch.sigmoid(fixture["train/time_normal"]).view(-1, B).T  # drawn cell by cell
    draws = XARNoise(t_BE, fixture["train/noise"].flatten(1, 2))
    every = torch.ones(B, dtype=torch.bool)
    drop = {"": fixture["train/label_drop"].bool(), "_null": every}
    model.train()

    def training(name: str, ours: Mapping[str, Tensor]) -> Tensor:
        cond = torch.func.functional_call(
            model.conditioner,
            {k.removeprefix("conditioner."): v for k, v in ours.items() if "conditioner." in k},
            (labels,),
            {"drop_B": drop["_null" if name.endswith("null") else ""]},
        )
        return Bound(model).under(ours, "loss", codes, cond, draws=draws).loss

    sequence = model.entities.sequence(codes)
    x = interpolate(sequence, draws.noise_BSC, t_BE[:, model.entity_of])
    found = {"train/time": t_BE.T.flatten(), "train/model_input": x}
    with torch.no_grad():
        for suffix, drop_B in drop.items():
            cond = model.conditioner(labels, drop_B=drop_B)
            found[f"train/velocity{suffix}"] = model.velocity(x, t_BE, cond)
            found[f"train/loss{suffix}"] = training(f"loss{suffix}", imported.weights)
    return found | fixture.gradients(training, xar.generator_weights)


class Recording(Velocity):
    """A field that keeps the first velocity of each cell."""

    def __init__(self, field: Velocity, first: list[Tensor], cells: list[Tensor]) -> None:
        self.field, self.first, self.cells = field, first, cells
        self.shape, self.device, self.positions = field.shape, field.device, field.positions

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Return the velocity, and note it if it is the first of its cell."""
        velocity = self.field(x, t)
        if len(self.first) < len(self.cells) + 1:
            self.first.append(velocity)
        return velocity


def _sample(model: XAR, fixture: Fixture, group: str, cfg: float, patch: int) -> dict[str, Tensor]:
    cells: list[Tensor] = []
    first: list[Tensor] = []

    predict = model.predict

    def recording(state: Any, draft: Tensor | None = None) -> Velocity:
        """Predict, and keep the first velocity that is asked for."""
        return Recording(predict(state, draft), first, cells)

    model.predict = recording  # type: ignore[method-assign]
    result = Sequential()(
        model,
        model.conditioner(fixture["labels"]),
        SamplingContext(
            guidance=BothHalves(scale=cfg),
            filters=Filters(),
            noise=RecordedNoise(fixture, group),
            observer=lambda positions, codes, params: cells.append(codes),
        ),
    )
    count = len(cells)
    weights = [BothHalves(scale=cfg).ramp(cell, count) for cell in range(count)]
    return {
        f"{group}/cells": torch.stack(cells),
        f"{group}/cfg_per_cell": torch.tensor(weights),
        f"{group}/first_velocity": torch.stack(first),
        f"{group}/latents": unpatchify(result.codes, model.spec.grid, patch),
    }
