"""Replays taming-transformers' `Net2NetTransformer`: codes, transformer, completion, images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.generators.conditioning import Cond
from argen.generators.net2net.net2net import KEEP, Net2Net
from argen.generators.next_token import arrange, restore
from argen.interop import net2net
from argen.interop.base import Imported
from argen.interop.taming import tokenizer as taming
from argen.layers.noise import SeededNoise
from argen.tokenizers.cnn import CNNTokenizer
from replays.fixture import Bound, Fixture

FRACTIONS = {"half": 2, "third": 3, "quarter": 4}


class RecordedCorruption:
    """Gives the draws that turn codes (B, L) into recorded corrupted ones."""

    def __init__(self, codes: Tensor, corrupted: Tensor, vocab_size: int) -> None:
        self.changed = (codes != corrupted).float()
        self.values = (corrupted + 0.5) / vocab_size

    def uniform(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return 1 where a code was replaced, or what is replaced by which code, (B, L)."""
        return (self.changed if use == KEEP else self.values)[:, positions]


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a `Net2NetTransformer` fixture."""
    tokenizer = _stage(fixture, "first_stage")
    found: dict[str, Tensor] = {}
    ids = fixture.io.get("cond_indices")
    if fixture.wants("cond_indices"):
        ids = found["cond_indices"] = _condition_ids(fixture)
    assert ids is not None
    condition = net2net.condition_of(fixture.config, length=ids.shape[1])
    convert = partial(net2net.generator_weights, condition=condition)
    imported = Imported(
        net2net.generator_config(
            fixture.config, condition, grid=tokenizer.spec.grid, weights=fixture.weights
        ),
        convert(fixture.weights),
        fixture.name,
    )
    model = imported.build()
    assert isinstance(model, Net2Net)
    inputs = ids[:, 0] if ids.shape[1] == 1 else ids
    order = model.order
    with torch.no_grad():
        cond = model.conditioner(inputs)
        # The reference's codes stand in the order they are drawn.
        drawn = fixture.io.get("code_indices")
        if drawn is None or fixture.wants("code_indices"):
            drawn = arrange(tokenizer.encode(fixture["image"]), order)
            found["code_indices"] = drawn
        codes = restore(drawn, order)
        if fixture.wants("logits"):
            found["logits"] = arrange(model.score(codes, cond), order)
        if fixture.wants("loss"):
            found["loss"] = model.loss(codes, cond).loss.reshape(1)
        for name in fixture.expected:
            if name.startswith("gen_tokens"):
                found |= _generate(fixture, model, cond, name)
            elif name.startswith("completed_tokens"):
                found |= _complete(fixture, model, cond, drawn, name)
            elif name.endswith("_probs"):
                found[name] = _filtered(fixture, name)
        if fixture.wants("reconstruction"):
            found["reconstruction"] = tokenizer.decode(codes)
        for name in fixture.expected:
            if name.endswith("_image"):
                tokens = found[f"{name.removesuffix('_image')}_tokens"]
                found[name] = tokenizer.decode(restore(tokens, order))
    return found | _training(fixture, model, convert, inputs, codes)


def _stage(fixture: Fixture, stage: str) -> CNNTokenizer:
    """Build the first or the condition stage's tokenizer."""
    prefix, config = f"{stage}_model.", fixture.config[f"{stage}_config"]["params"]
    weights = {
        k.removeprefix(prefix): v for k, v in fixture.weights.items() if k.startswith(prefix)
    }
    used = weights.get("quantize.used")
    size = list(fixture["image"].shape[2:]) if "image" in fixture.io else None
    imported = Imported(
        taming.tokenizer_config(
            config,
            image_size=size or config["ddconfig"]["resolution"],
            used=None if used is None else len(used),
        ),
        taming.tokenizer_weights(weights),
        fixture.name,
    )
    model = imported.build()
    assert isinstance(model, CNNTokenizer)
    return model


def _condition_ids(fixture: Fixture) -> Tensor:
    """Return the condition ids (B, T) of the recorded condition."""
    condition = net2net.condition_of(fixture.config)
    if condition.kind == "start":
        rows = len(next(fixture[name] for name in fixture.inputs))
        return torch.full((rows, 1), condition.ids)
    given = fixture[fixture.config["cond_stage_key"]]
    if condition.kind == "class":
        return given.reshape(-1, 1).long()
    size = fixture.config.get("downsample_cond_size", -1)
    if size > -1:
        given = F.interpolate(given, size=(size, size))
    model = _stage(fixture, "cond_stage")
    with torch.no_grad():
        ids = model.quantizer(model.latents(given)).ids
    assert ids is not None
    return ids.reshape(len(given), -1)


def _generate(fixture: Fixture, model: Net2Net, cond: Cond, name: str) -> dict[str, Tensor]:
    steps: list[Tensor] = []
    result = Sequential()(
        model,
        cond,
        SamplingContext(
            guidance=Guidance(),
            filters=Filters(temperature=0.0),
            noise=SeededNoise(range(len(cond))),
            observer=lambda positions, codes, params: steps.append(params),
        ),
    )
    n = fixture[name].shape[1]
    return {
        name: arrange(result.codes, model.order)[:, :n],
        name.replace("tokens", "logits"): torch.cat(steps, dim=1)[:, :n],
    }


def _complete(
    fixture: Fixture, model: Net2Net, cond: Cond, drawn: Tensor, name: str
) -> dict[str, Tensor]:
    """Keep the first drawn codes, as many as the description says, and generate the rest."""
    L, text = drawn.shape[1], fixture.description(name).lower()
    told = re.search(r"first (\d+|half|third|quarter)", text)
    word = told[1] if told else "half"
    kept = int(word) if word.isdigit() else L // FRACTIONS[word]
    positions = torch.arange(L) if model.order is None else model.order
    result = Sequential()(
        model,
        cond,
        SamplingContext(
            guidance=Guidance(),
            filters=Filters(temperature=0.0),
            noise=SeededNoise(range(len(cond))),
            known=(positions[:kept], drawn[:, :kept]),
        ),
    )
    return {name: arrange(result.codes, model.order)[:, : fixture[name].shape[1]]}


def _filtered(fixture: Fixture, name: str) -> Tensor:
    def number(options: tuple[str, ...], default: float) -> float:
        read = (fixture.number(name, option, float("nan")) for option in options)
        return next((value for value in read if value == value), default)

    filters = Filters(
        temperature=number(("temperature",), 1.0),
        top_k=int(number(("top-k", "top_k", "k"), 0)),
        top_p=number(("top-p", "top_p", "p"), 1.0),
    )
    return torch.softmax(filters(fixture[name.replace("_probs", "_logits")]), dim=-1)


def _training(
    fixture: Fixture,
    model: Net2Net,
    convert: partial,
    inputs: Tensor,
    codes: Tensor,
) -> dict[str, Tensor]:
    noise = None
    if "corrupted_indices" in fixture.io:
        corrupted = restore(fixture["corrupted_indices"], model.order)
        noise = RecordedCorruption(codes, corrupted, model.vocab_size)

    def loss(name: str, ours: Mapping[str, Tensor]) -> Tensor:
        model.train("pkeep" in name)
        model.keep_rate = 0.5  # Any rate below one: the recorded draws are 0 or 1.
        bound = Bound(model)
        cond = bound.under(ours, "conditioner", inputs)
        return bound.under(ours, "loss", codes, cond, noise=noise).loss.reshape(1)

    found = {
        name: loss(name, convert(fixture.weights)).detach()
        for name in fixture.expected
        if re.fullmatch(r"\w*pkeep\w*loss\w*", name)
    }
    return found | fixture.gradients(loss, convert)
