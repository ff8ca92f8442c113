"""Replays LlamaGen: VQ tokenizer, class- and text-conditional transformer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.generators.conditioning import Cond, TextFeatures
from argen.generators.gpt import GPT
from argen.interop.base import Imported
from argen.interop.llamagen import llamagen
from argen.layers.noise import SeededNoise
from replays import llamagen_loss
from replays.fixture import Bound, Fixture

SYSTEMS = ("llamagen",)


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a `VQModel`, `VQLoss` or `Transformer` fixture."""
    replays = {"VQModel": _tokenizer, "VQLoss": llamagen_loss.replay, "Transformer": _generator}
    return replays[fixture.card["class"]](fixture)


def _tokenizer(fixture: Fixture) -> dict[str, Tensor]:
    image, code = fixture["image"], fixture.io.get("code")
    imported = Imported(
        llamagen.tokenizer_config(fixture.config, image_size=list(image.shape[2:])),
        llamagen.tokenizer_weights(fixture.weights),
        fixture.name,
    )
    model = imported.build()
    with torch.no_grad():
        z = model.latents(image)
        quantized = model.quantizer(z)
        found = {
            "encoder_out": model.encoder(image),
            "latent": z.permute(0, 3, 1, 2),
            "indices": model.encode(image).flatten(),
            "quantized": quantized.z.permute(0, 3, 1, 2),
            "reconstruction": model(image).images,
        }
        if code is not None:
            grid = code.unflatten(1, model.spec.grid)
            found["code_embedding"] = model.quantizer.lookup(grid).permute(0, 3, 1, 2)
            found["code_decoded"] = model.decode(code)
    model.train()
    weights = llamagen.loss_weights(fixture.config)

    def training(name: str, ours: Mapping[str, Tensor]) -> Tensor:
        output = Bound(model).under(ours, "forward", image)
        losses = {k: weights[k] * v for k, v in output.losses.items()}
        total = F.mse_loss(output.images, image) + sum(losses.values())
        return {
            "train_vq_loss": losses["codebook"],
            "train_commit_loss": losses["commitment"],
            "train_entropy_loss": losses.get("entropy", total.new_zeros(())),
            "train_total_loss": total,
        }[name]

    for name in ("train_vq_loss", "train_commit_loss", "train_entropy_loss", "train_total_loss"):
        if fixture.wants(name):
            found[name] = training(name, imported.weights).reshape(1)
    return found | fixture.gradients(training, llamagen.tokenizer_weights)


def _inputs(fixture: Fixture) -> Tensor | TextFeatures:
    if "caption" in fixture.io:
        return TextFeatures(fixture["caption"], fixture["caption_mask"].bool())
    return fixture["cond"]


def _generator(fixture: Fixture) -> dict[str, Tensor]:
    imported = Imported(
        llamagen.generator_config(fixture.config),
        llamagen.generator_weights(fixture.weights),
        fixture.name,
    )
    model = imported.build()
    assert isinstance(model, GPT)
    inputs, tokens = _inputs(fixture), fixture["tokens"]
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        cond = model.conditioner(inputs)
        for name in fixture.expected:
            if name == "logits_cond":
                found[name] = model.score(tokens, cond)
            elif name == "logits_null":
                found[name] = model.score(tokens, model.conditioner.null(cond))
            elif name == "logits_nomask":
                found[name] = model.score(tokens, Cond(tokens_BTD=cond.tokens_BTD))
            elif name == "loss_cond":
                found[name] = model.loss(tokens, cond).loss.reshape(1)
            elif name == "loss_null":
                found[name] = model.loss(tokens, model.conditioner.null(cond)).loss.reshape(1)
            elif name == "caption_embedding":
                found[name] = cond.tokens_BTD
            elif name == "freqs_cis":
                found[name] = model.rope_table
            elif name.startswith("filter_probs"):
                filters = Filters(
                    temperature=fixture.number(name, "temperature", 1.0),
                    top_k=int(fixture.number(name, "top_k", 0)),
                    top_p=fixture.number(name, "top_p", 1.0),
                )
                found[name] = torch.softmax(filters(fixture["filter_logits"]), dim=-1)
            elif name.startswith("gen_tokens_"):
                found |= _generate(model, cond, fixture, name)
    return found | _training(model, imported, fixture, inputs, tokens)


def _generate(model: GPT, cond: Cond, fixture: Fixture, name: str) -> dict[str, Tensor]:
    steps: list[Tensor] = []
    result = Sequential()(
        model,
        cond,
        guidance=Guidance(
            scale=fixture.number(name, "cfg_scale", 1.0),
            interval=int(fixture.number(name, "cfg_interval", -1)),
        ),
        filters=Filters(temperature=0.0),
        noise=SeededNoise(range(len(cond))),
        observer=lambda positions, codes, params: steps.append(params),
    )
    return {name: result.codes, name.replace("tokens", "logits"): torch.cat(steps, dim=1)}


def _training(
    model: GPT,
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
        bound = Bound(model)
        bound_cond = torch.func.functional_call(
            model.conditioner,
            {k.removeprefix("conditioner."): v for k, v in ours.items() if "conditioner." in k},
            (inputs,),
            {"drop_B": drop_B},
        )
        nll_BL = bound.under(ours, "loss", tokens, bound_cond).nll
        if name == "train_loss_valid":
            valid_B1 = fixture["valid"].to(nll_BL.dtype)[:, None].expand_as(nll_BL)
            return (nll_BL * valid_B1).sum() / valid_B1.sum()
        return nll_BL.mean()

    names = ("train_loss", "train_loss_valid", "train_loss_all")
    found = {
        name: training(name, imported.weights).detach().reshape(1)
        for name in names
        if fixture.wants(name)
    }
    return found | fixture.gradients(training, llamagen.generator_weights)
