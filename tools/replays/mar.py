"""Replays MAR: teacher forcing, diffusion head, loss with recorded draws, sampling."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.masked import ORDER, Masked, cosine_counts
from argen.generators.conditioning import Cond
from argen.generators.mar import MAR
from argen.generators.mar.mar import MARNoise
from argen.interop import mar
from argen.interop.base import Imported
from argen.layers.diffusion import GaussianDiffusion
from argen.tokenizers.kl import patchify, unpatchify
from replays.fixture import Bound, Fixture

SYSTEMS = ("mar",)


class RecordedNoise:
    """The recorded draws of a sampling run: orders, and a start and steps for each pass."""

    def __init__(self, fixture: Fixture, group: str) -> None:
        self.fixture, self.group, self.iteration = fixture, group, -1
        # The reference draws from the end of its order.
        self.rank_BL = fixture[f"{group}/orders"].flip(1).argsort(dim=1)

    def uniform(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return numbers that sort the positions into the recorded order."""
        assert use == ORDER
        return (self.rank_BL + 0.5) / self.rank_BL.shape[1]

    def normal(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return the conditional rows of this pass's draw; `use` 0 starts a pass."""
        self.iteration += use == 0
        name = f"{self.group}/iter{self.iteration}"
        rows = positions.numel()
        drawn = self.fixture[f"{name}/init_noise"]
        if use > 0:
            drawn = self.fixture[f"{name}/step_noise"][use - 1]
        return drawn[:rows].view(*positions.shape, *size)

    def gumbel(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Not drawn by MAR."""
        raise NotImplementedError


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a `MAR` fixture."""
    imported = Imported(
        mar.generator_config(fixture.config), mar.generator_weights(fixture.weights), fixture.name
    )
    model = imported.build()
    assert isinstance(model, MAR)
    labels = fixture.io.get("labels")
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        found |= _schedules(fixture)
        if "head/x" in fixture.io:
            found |= _head(model, fixture)
        if "latents" in fixture.io:
            codes = patchify(fixture["latents"], fixture.config.get("patch_size", 1))
            found["tokens"] = codes
            if labels is not None and "tf/mask" in fixture.io:
                found |= _teacher_forced(model, fixture, codes, model.conditioner(labels))
        for group in fixture.card.get("sampling", {}):
            if f"{group}/orders" in fixture.io:
                found |= _sample(model, fixture, group, labels)
    if "train/orders" in fixture.io:
        found |= _training(model, imported, fixture)
    return found


def _schedules(fixture: Fixture) -> dict[str, Tensor]:
    found = {}
    for name in fixture.expected:
        if not name.startswith("schedule/"):
            continue
        _, which, table = name.split("/")
        said = re.search(r'timestep_respacing\s*=\s*"([^"]*)"', fixture.description(name))
        spacing = "" if which == "full" else which.replace("_", ",")
        process = GaussianDiffusion(spacing=said.group(1) if said else spacing)
        tables = process.tables | {"timesteps": torch.tensor(process.timesteps)}
        found[name] = tables[table]
    return found


def _head(model: MAR, fixture: Fixture) -> dict[str, Tensor]:
    x, t, c = fixture["head/x"], fixture["head/t"], fixture["head/c"]
    net = model.head.net
    found = {"head/out": net(x, t, net.condition(c))}
    if fixture.wants("head/cfg_out"):
        said = re.search(
            r"forward_with_cfg\([^)]*?,\s*([\d.]+)\)", fixture.description("head/cfg_out")
        )
        scale = float(said.group(1)) if said else 1.0
        half, width = len(x) // 2, x.shape[1]
        output = net(torch.cat((x[:half], x[:half])), t, net.condition(c))
        cond, null = output[:half, :width], output[half:, :width]
        eps = null + scale * (cond - null)
        found["head/cfg_out"] = torch.cat((torch.cat((eps, eps)), output[:, width:]), dim=1)
    return found


def _teacher_forced(model: MAR, fixture: Fixture, codes: Tensor, cond: Cond) -> dict[str, Tensor]:
    known = (fixture["tf/mask"] == 0).nonzero()[:, 1].view(len(codes), -1)
    null = model.conditioner.null(cond)
    return {
        "tf/encoder_out": model.network.forward_mae_encoder(
            codes, model.condition_buffer(cond), known
        ),
        "tf/z": model.forward_mae(codes, cond, known),
        "tf/z_null": model.forward_mae(codes, null, known),
        "tf/z_all_masked": model.forward_mae(codes, cond, known[:, :0]),
    }


def _sample(model: MAR, fixture: Fixture, group: str, labels: Tensor | None) -> dict[str, Tensor]:
    settings: dict[str, Any] = fixture.card["sampling"][group]
    B, steps = len(fixture[f"{group}/orders"]), int(settings["num_iter"])
    L, noise, found = model.spec.length, RecordedNoise(fixture, group), {}
    guidance = Guidance(
        scale=float(settings.get("cfg", 1.0)), schedule=settings.get("cfg_schedule", "linear")
    )
    temperature = float(settings.get("temperature", 1.0))
    cond = model.conditioner(torch.zeros(B, dtype=torch.long) if labels is None else labels[:B])
    if settings.get("unconditional") or labels is None:
        cond = model.conditioner.null(cond)
    weights: list[float] = []
    done = 0

    def observe(positions: Tensor, codes: Tensor, params: Tensor) -> None:
        nonlocal done
        name = f"{group}/iter{len(weights)}"
        done += positions.shape[1]
        weights.append(guidance.weight_at(min(done, L - 1) / L) if guidance.active else 1.0)
        found[f"{name}/z"] = params.flatten(0, 1)
        drawn = codes.flatten(0, 1)
        if guidance.active:
            null = _null_half(model, fixture, name, params, weights[-1], temperature)
            drawn = torch.cat((drawn, null))
        found[f"{name}/sampled"] = drawn

    result = Masked(steps)(
        model,
        cond,
        SamplingContext(
            guidance=guidance,
            filters=Filters(temperature=temperature),
            noise=noise,
            observer=observe,
        ),
    )
    patch = fixture.config.get("patch_size", 1)
    return found | {
        f"{group}/latents": unpatchify(result.codes, model.spec.grid, patch),
        f"{group}/cfg_per_iteration": torch.tensor(weights),
        f"{group}/tokens_per_iteration": torch.tensor(cosine_counts(L, steps)),
    }


def _null_half(
    model: MAR, fixture: Fixture, name: str, params: Tensor, weight: float, temperature: float
) -> Tensor:
    """Return what the reference computes for the null rows and throws away.

    They share the guided noise prediction, which follows the conditional rows, but have their own
    variance and step noise.
    """
    head, rows = model.head, params.shape[0] * params.shape[1] // 2
    c = head.net.condition(params.flatten(0, 1))
    cond = null = fixture[f"{name}/init_noise"][:rows]
    fresh, width = fixture[f"{name}/step_noise"], head.code_dim
    for k, step in enumerate(range(len(head.sampling) - 1, -1, -1)):
        t = torch.tensor(head.sampling.timesteps[step])
        output = head.net(torch.cat((cond, cond)), t, c)
        a, b = output[:rows, :width], output[rows:, :width]
        eps, values = b + weight * (a - b), output[:, width:]
        cond, null = (
            head.sampling.reverse(x, eps, v, step, n, temperature=temperature)
            for x, v, n in zip(
                (cond, null), (values[:rows], values[rows:]), (fresh[k, :rows], fresh[k, rows:])
            )
        )
    return null


def _training(model: MAR, imported: Imported, fixture: Fixture) -> dict[str, Tensor]:
    labels, drop_B = fixture["labels"], fixture["train/label_drop"].bool()
    codes = patchify(fixture["latents"], fixture.config.get("patch_size", 1))
    B, L, C = codes.shape
    masked = int(torch.ceil(L * fixture["train/mask_ratio"].double().reshape(())))
    draws = MARNoise(
        order_BL=fixture["train/orders"],
        masked=masked,
        t_mBL=fixture["train/t"].view(-1, B, L),
        noise_mBLC=fixture["train/noise"].view(-1, B, L, C),
    )
    model.train()

    def training(name: str, ours: Mapping[str, Tensor]) -> Tensor:
        cond = torch.func.functional_call(
            model.conditioner,
            {k.removeprefix("conditioner."): v for k, v in ours.items() if "conditioner." in k},
            (labels,),
            {"drop_B": drop_B},
        )
        return Bound(model).under(ours, "loss", codes, cond, draws=draws).loss

    found = {
        "train/num_masked": torch.tensor([masked]),
        "train/loss": training("train/loss", imported.weights).detach(),
    }
    with torch.no_grad():  # the terms of every token, known ones included
        cond = model.conditioner(labels, drop_B=drop_B)
        known = draws.order_BL[:, masked:].sort(dim=1).values
        hidden = model.forward_mae(codes, cond, known)
        error, bound = model.head.terms(hidden, codes, draws.t_mBL, draws.noise_mBLC)
    found |= {"train/mse": error.flatten(), "train/vb": bound.flatten()}
    return found | fixture.gradients(training, mar.generator_weights)
