"""Replays the second stages of Open-MAGVIT2, WeTok and IBQ: `Net2NetTransformer` over their codes.

The three differ in how many ids a code has and in the network; what is recorded is alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.generators.conditioning import ClassConditioner, Cond
from argen.generators.gpt import GPT
from argen.generators.subtoken import SubTokenGPT
from argen.interop import ibq, ibq_ar, open_magvit2, open_magvit2_ar, wetok
from argen.interop.base import Imported, StateDict
from argen.layers.noise import SeededNoise
from argen.tokenizers.cnn import CNNTokenizer
from replays.fixture import Bound, Fixture

SYSTEMS = (
    "open-magvit2-ar",
    "wetok-ar",
    "ibq-ar",
)

NAMES = ("pre", "post")  # what a pair of sub-tokens is called


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a `Net2NetTransformer` fixture of one of the three."""
    tokenizer = _tokenizer(fixture)
    convert: Callable[..., StateDict]
    if "IBQ" in fixture.card["class"]:
        config, convert = ibq_ar.generator_config(fixture.config), ibq_ar.generator_weights
    else:
        config = open_magvit2_ar.generator_config(fixture.config)
        convert = open_magvit2_ar.generator_weights
    imported = Imported(config, convert(fixture.weights), fixture.name)
    model = imported.build()
    assert isinstance(model, GPT)
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        codes = tokenizer.encode(fixture["image"])
        quantized = tokenizer.quantizer.lookup(codes.unflatten(1, tokenizer.spec.grid))
        found["quantized"] = quantized.permute(0, 3, 1, 2)
        found["reconstruction"] = tokenizer.decode(codes)
        found |= _columns(codes, "indices")
        for null in (False, True):
            cond = _cond(model, fixture, imported.weights, null=null)
            for g, logits in enumerate(_logits(model, imported.weights, codes, cond)):
                for name in _spellings("logits", g, codes, null=null):
                    found[name] = logits
        for name in fixture.expected:
            if re.match(r"(train_)?loss", name):
                found[name] = _loss(model, fixture, codes, name, imported.weights)
        if fixture.wants(*(n for n in fixture.expected if n.startswith("generated"))):
            drawn = _generate(model, fixture, imported.weights)
            found |= _columns(drawn, "generated")
            found["generated_image"] = tokenizer.decode(drawn)

    def loss(name: str, ours: Mapping[str, Tensor]) -> Tensor:
        return _loss(model, fixture, codes, name, ours)

    return found | fixture.gradients(loss, convert)


def _tokenizer(fixture: Fixture) -> CNNTokenizer:
    stage, image = fixture.config["first_stage_config"], fixture["image"]
    prefix, config = "first_stage_model.", stage["params"]
    weights = {
        k.removeprefix(prefix): v for k, v in fixture.weights.items() if k.startswith(prefix)
    }
    system = ibq if "IBQ" in stage["target"] else wetok if "WeTok" in stage["target"] else None
    system = system or open_magvit2
    imported = Imported(
        system.tokenizer_config(config, image_size=list(image.shape[2:])),
        system.tokenizer_weights(weights),
        fixture.name,
    )
    model = imported.build()
    assert isinstance(model, CNNTokenizer)
    return model


def _spellings(what: str, g: int, codes: Tensor, *, null: bool = False) -> list[str]:
    """Return the names a tensor of sub-token `g` may go by."""
    subs = codes.shape[2] if codes.ndim == 3 else 1
    parts = [str(g), *NAMES[g : g + 1]] if subs <= 2 else [str(g)]
    tails = [f"_{part}" for part in parts] + ([""] if subs == 1 else [])
    if not null:
        return [what + tail for tail in tails]
    return [name for tail in tails for name in (f"{what}_null{tail}", f"{what}{tail}_null")]


def _columns(codes: Tensor, what: str) -> dict[str, Tensor]:
    """Name each sub-token of codes (B, L) or (B, L, G)."""
    columns = codes.unbind(-1) if codes.ndim == 3 else (codes,)
    return {name: c for g, c in enumerate(columns) for name in _spellings(what, g, codes)}


def _cond(model: GPT, fixture: Fixture, ours: Mapping[str, Tensor], *, null: bool = False) -> Cond:
    labels = fixture["class_ids"].reshape(-1)
    drop_B = torch.full_like(labels, null, dtype=torch.bool)
    return Bound(model).under(ours, "conditioner", labels, drop_B=drop_B)


def _logits(model: GPT, ours: Mapping[str, Tensor], codes: Tensor, cond: Cond) -> list[Tensor]:
    """Return teacher-forced logits (B, L, V) of each sub-token."""
    params = Bound(model).under(ours, "score", codes, cond)
    if not isinstance(model, SubTokenGPT):
        return [params]
    head = Bound(model.head)
    own = {k.removeprefix("head."): v for k, v in ours.items() if k.startswith("head.")}
    return head.under(own, "logits", params, codes)


def _loss(
    model: GPT, fixture: Fixture, codes: Tensor, name: str, ours: Mapping[str, Tensor]
) -> Tensor:
    """Return the training loss, or that of the sub-token that a name ends with."""
    cond = _cond(model, fixture, ours, null="null" in name)
    columns = codes.unbind(-1) if codes.ndim == 3 else (codes,)
    losses = [
        F.cross_entropy(logits.flatten(0, 1), column.flatten())
        for logits, column in zip(_logits(model, ours, codes, cond), columns, strict=True)
    ]
    for g, value in enumerate(losses):
        if len(losses) > 1 and name in _spellings("loss", g, codes):
            return value
    return Bound(model).under(ours, "loss", codes, cond).loss


def _generate(model: GPT, fixture: Fixture, ours: Mapping[str, Tensor]) -> Tensor:
    """Draw codes with the recorded settings, one or a list of one a sub-token."""
    assert isinstance(model.conditioner, ClassConditioner)
    subs = model.spec.sub_tokens
    scales = [max(1.0, s) for s in _settings(fixture, "cfg_scale", 1.0, subs)]
    each = [
        Filters(temperature=t, top_k=int(k), top_p=p)
        for t, k, p in zip(
            _settings(fixture, "temperature", 1.0, subs),
            _settings(fixture, "top_k", 1, subs),
            _settings(fixture, "top_p", 1.0, subs),
            strict=True,
        )
    ]
    cond = _cond(model, fixture, ours)
    result = Sequential()(
        model,
        cond,
        guidance=Guidance(sub_tokens=scales) if subs > 1 else Guidance(scale=scales[0]),
        filters=Filters(sub_tokens=each) if subs > 1 else each[0],
        noise=SeededNoise(range(len(cond))),
    )
    return result.codes


def _settings(fixture: Fixture, option: str, default: float, subs: int) -> list[float]:
    """Read `option=x` or `option=[x, y]` from the card; one value stands for all sub-tokens."""
    texts = [fixture.description(n) for n in fixture.expected if n.startswith("generated")]
    for text in (*texts, fixture.card.get("procedure", "")):
        match = re.search(rf"\b{option}\s*=\s*(\[[^\]]*\]|-?[\d.]*\d)", text)
        if match:
            found = [float(x) for x in re.findall(r"-?\d+\.?\d*", match[1])]
            return found * subs if len(found) == 1 else found
    return [float(default)] * subs
