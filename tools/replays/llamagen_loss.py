"""Replays LlamaGen's tokenizer loss, `VQLoss`, in the variants that a card's descriptions name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from argen.build import build
from argen.interop.llamagen import llamagen_objective
from argen.objectives.objective import Objective
from argen.tokenizers.base import TokenizerOutput
from replays.fixture import Bound, Fixture

QUANTIZER = ("codebook", "commitment", "entropy")


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a `VQLoss` fixture."""
    found = {}
    for name in fixture.expected:
        if name.endswith(("_gen_loss", "_disc_loss")):
            found[name] = _loss(fixture, name, fixture["last_layer"], fixture.weights).detach()
        elif name in ("disc_eval", "disc_train"):
            judge = _objective(fixture, fixture.config).discriminator
            assert judge is not None
            with torch.no_grad():
                found[name] = judge.train(name == "disc_train")(fixture["image"])
    for name, scale, term, key in fixture.wanted_gradients():
        leaves = fixture.leaves()
        last = fixture["last_layer"].clone().requires_grad_()
        value = scale * _loss(fixture, term, last, leaves)
        (found[name],) = torch.autograd.grad(value, last if key == "last_layer" else leaves[key])
    return found


def _options(fixture: Fixture, name: str) -> dict[str, Any]:
    """Read `option value` and `option and option value` out of a description."""
    config = {"global_step": fixture.config["disc_start"], **fixture.config}
    option = "|".join(sorted(config, key=len, reverse=True))
    stated = rf"\b((?:{option})(?: and (?:{option}))*)[ =]+([\w.-]*\w)"
    for names, text in re.findall(stated, fixture.description(name)):
        value: Any = {"True": True, "False": False}.get(text, text)
        if re.fullmatch(r"-?\d+(\.\d+)?", text):
            value = float(text) if "." in text else int(text)
        config |= dict.fromkeys(names.split(" and "), value)
    return config


def _objective(fixture: Fixture, options: Mapping[str, Any]) -> Objective:
    """Return the losses; the recorded quantiser terms already have their weights."""
    config = llamagen_objective.objective_config(options, quantizer=dict.fromkeys(QUANTIZER, 1.0))
    objective = build(config, trust=True)
    objective.discriminator.load_state_dict(
        llamagen_objective.discriminator_weights(fixture.weights), strict=True
    )
    return objective


def _loss(fixture: Fixture, name: str, last_layer: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    options = _options(fixture, name)
    step = int(options["global_step"])
    objective = _objective(fixture, options).train()
    last_layer = last_layer if last_layer.requires_grad else last_layer.clone().requires_grad_()
    # A copy, because the batch norms move their statistics.
    ours = {
        f"discriminator.{k}": v.clone()
        for k, v in llamagen_objective.discriminator_weights(weights).items()
    }
    image = fixture["image"]
    images = F.conv2d(fixture["features"], last_layer)
    if name.endswith("_disc_loss"):
        if not objective.trains_discriminator(step):
            return image.new_zeros(())
        return Bound(objective).under(ours, "discriminator_loss", image, images, step=step)[0]
    losses = dict(zip(QUANTIZER, fixture["codebook_losses"].flatten()))
    output = TokenizerOutput(images=images, losses=losses)
    return Bound(objective).under(
        ours, "tokenizer_loss", image, output, step=step, last_layer=last_layer
    )[0]
