"""Replays NAR: class- and text-conditional neighbouring prediction."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.generators.conditioning import Cond, TextFeatures
from argen.generators.nar import NAR
from argen.interop import nar
from argen.interop.base import Imported
from argen.layers.masks import dense_mask
from argen.layers.noise import SeededNoise
from replays.fixture import Bound, Fixture

SYSTEMS = ("nar",)


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor."""
    imported = Imported(
        nar.generator_config(fixture.config), nar.generator_weights(fixture.weights), fixture.name
    )
    model = imported.build()
    assert isinstance(model, NAR)
    inputs: Tensor | TextFeatures
    if "caption" in fixture.io:
        inputs = TextFeatures(fixture["caption"], fixture["caption_mask"].bool())
    else:
        inputs = fixture["cond"]
    tokens = fixture["tokens"]
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        cond = model.conditioner(inputs)
        null = model.conditioner.null(cond)
        places = torch.arange(model.prefix_length + model.spec.length)
        rows = None if cond.mask_BT is None else len(cond)
        found["mask"] = dense_mask(model.pattern(cond), places, places, rows=rows)[:, 0].float()
        right_BSD, down_BSD = model.hidden(tokens, cond)
        found["head_right"], found["head_down"] = model.head(right_BSD), model.down_head(down_BSD)
        found["logits_cond"], found["logits_null"] = (
            model.score(tokens, cond),
            model.score(tokens, null),
        )
        found["loss_cond"] = model.loss(tokens, cond).loss.reshape(1)
        found["loss_null"] = model.loss(tokens, null).loss.reshape(1)
        runs = {re.sub("^gen_(tokens|logits)_", "", name) for name in fixture.expected}
        for run in runs:
            if fixture.wants(f"gen_tokens_{run}", f"gen_logits_{run}"):
                found |= _generate(model, cond, fixture, run)
    return found | _training(model, imported, fixture, inputs, tokens)


def _generate(model: NAR, cond: Cond, fixture: Fixture, run: str) -> dict[str, Tensor]:
    names = f"gen_tokens_{run}", f"gen_logits_{run}"
    name = next((n for n in names if "cfg_scale" in fixture.description(n)), names[0])
    scale = fixture.number(name, "cfg_scale", 1.0)
    interval = int(fixture.number(name, "cfg_interval", -1))
    # The interval counts codes: guidance ends for good before the first diagonal that follows
    # more codes than that.
    sizes = model.plan.sizes
    drawn = [sum(sizes[:step]) for step in range(len(sizes))]
    scales = [
        scale if step == 0 or interval < 0 or drawn[step] <= interval else 1.0
        for step in range(len(sizes))
    ]
    steps: list[tuple[Tensor, Tensor]] = []
    result = Sequential()(
        model,
        cond,
        guidance=Guidance(scales),
        filters=Filters(temperature=0.0),
        noise=SeededNoise(range(len(cond))),
        observer=lambda positions, codes, params: steps.append((positions, params)),
    )
    order = torch.cat([positions.flatten() for positions, _ in steps])
    logits = torch.cat([params for _, params in steps], dim=1)[:, order.argsort()]
    return dict(zip(names, (result.codes, logits)))


def _training(
    model: NAR,
    imported: Imported,
    fixture: Fixture,
    inputs: Tensor | TextFeatures,
    tokens: Tensor,
) -> dict[str, Tensor]:
    if "train_drop" not in fixture.io:
        return {}
    drop_B = fixture["train_drop"].bool()
    model.train()

    def training(name: str, ours: Mapping[str, Tensor]) -> Tensor:
        rows = {k.removeprefix("conditioner."): v for k, v in ours.items() if "conditioner." in k}
        cond = torch.func.functional_call(model.conditioner, rows, (inputs,), {"drop_B": drop_B})
        return Bound(model).under(ours, "loss", tokens, cond).loss

    with torch.no_grad():
        found = {"train_loss": training("train_loss", imported.weights).reshape(1)}
    return found | fixture.gradients(training, nar.generator_weights)
