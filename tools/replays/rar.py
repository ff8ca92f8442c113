"""Replays RAR: scores in any order, losses, sampling with the power-cosine guidance."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.generators.conditioning import ClassConditioner, Cond
from argen.generators.next_token import arrange
from argen.generators.rar import RAR
from argen.interop import rar
from argen.interop.base import Imported
from argen.layers.noise import SeededNoise
from replays.fixture import Bound, Fixture

SYSTEMS = ("RAR",)


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a `RAR` fixture."""
    imported = Imported(
        rar.generator_config(fixture.config), rar.generator_weights(fixture.weights), fixture.name
    )
    model = imported.build()
    assert isinstance(model, RAR)
    assert isinstance(model.conditioner, ClassConditioner)
    labels = fixture["class_labels"]
    # The reference numbers codes, a mask, classes and the null class in one table.
    first_class = model.spec.vocab_size + 1
    null = torch.full_like(labels, model.conditioner.num_classes)
    found = {
        "condition_ids": labels + first_class,
        "null_condition_ids": null + first_class,
        "labels_raster": fixture.io.get("tokens"),
    }
    with torch.no_grad():
        if "orders" in fixture.io and "tokens" in fixture.io:
            found["labels_permuted"] = arrange(fixture["tokens"], fixture["orders"])
        for name in fixture.expected:
            if name.startswith("logits_"):
                found[name] = _logits(fixture, model, name, imported.weights)
            elif re.match(r"(loss|correct)_", name):
                found[name] = _loss(fixture, model, name, imported.weights)
            elif name.startswith("prefix_logits"):
                found[name] = _prefix(fixture, model, name)
            elif name.endswith("_tokens"):
                found |= _generate(fixture, model, name)

    def loss(name: str, ours: Mapping[str, Tensor]) -> Tensor:
        return _loss(fixture, model, name, ours)

    found |= fixture.gradients(loss, rar.generator_weights)
    return {k: v for k, v in found.items() if v is not None}


def _order(fixture: Fixture, name: str) -> Tensor | None:
    return fixture["orders"] if "permuted" in name else None


def _cond(fixture: Fixture, model: RAR, name: str, ours: Mapping[str, Tensor]) -> Cond:
    labels = fixture["class_labels"]
    drop = torch.zeros_like(labels, dtype=torch.bool)
    if "null" in name:
        drop = ~drop
    elif "dropped" in name:
        drop = fixture["drop_mask"].bool()
    return Bound(model).under(ours, "conditioner", labels, drop_B=drop)


def _logits(fixture: Fixture, model: RAR, name: str, ours: Mapping[str, Tensor]) -> Tensor:
    """Return logits (B, L + 1, V) in the order codes are drawn, the unused last one included."""
    order, bound = _order(fixture, name), Bound(model)
    drawn = arrange(fixture["tokens"], order)
    cond = _cond(fixture, model, name, ours)
    hidden = bound.under(ours, "hidden", drawn, cond, order=order, beyond=True)
    return bound.under(ours, "head", hidden)


def _loss(fixture: Fixture, model: RAR, name: str, ours: Mapping[str, Tensor]) -> Tensor:
    if name.startswith("correct"):
        drawn = arrange(fixture["tokens"], _order(fixture, name))
        best = _logits(fixture, model, name, ours)[:, :-1].argmax(-1)
        return (best == drawn).float().mean()
    cond = _cond(fixture, model, name, ours)
    codes, order = fixture["tokens"], _order(fixture, name)
    return Bound(model).under(ours, "loss", codes, cond, order=order).loss


def _prefix(fixture: Fixture, model: RAR, name: str) -> Tensor:
    """Return the logits after a prefix that is fed in one pass, as drafts are."""
    drawn = fixture[name.replace("logits", "tokens")]
    cond = model.conditioner(fixture["class_labels"])
    state = model.start(cond, longest_draft=drawn.shape[1], order=fixture.io.get("orders"))
    return model.predict(state, drawn)[:, -1]


def _generate(fixture: Fixture, model: RAR, name: str) -> dict[str, Tensor]:
    scale = fixture.number(name, "guidance_scale", 0.0)
    temperature = fixture.number(name, "randomize_temperature", 1.0)
    cond = model.conditioner(fixture["class_labels"])
    steps: list[Tensor] = []
    result = Sequential()(
        model,
        cond,
        guidance=Guidance(
            scale=scale or 1.0,  # The reference's 0 leaves the null rows out.
            schedule="power_cosine",
            power=fixture.number(name, "guidance_scale_pow", 0.0),
        ),
        filters=Filters(temperature=0.0),
        noise=SeededNoise(range(len(cond))),
        observer=lambda positions, codes, params: steps.append(params),
    )
    logits = torch.cat(steps, dim=1) / temperature
    return {name: result.codes, name.replace("tokens", "logits"): logits}
