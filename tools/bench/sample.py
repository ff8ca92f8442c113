"""Seconds from class labels to codes; the bound is reading the weights and the cache every pass."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from released.llamagen_loop import ReleasedLoop

from argen.build import build
from argen.data.codes import CodeDataset
from argen.decoding.base import Decoder
from argen.decoding.context import SamplingContext
from argen.decoding.default import default_decoder
from argen.decoding.sequential import Sequential
from argen.errors import UserError, suggest
from argen.generators.gpt import GPT
from argen.generators.next_token import NextToken
from argen.layers.inference_precision import PRECISIONS, check_precision, to_precision
from argen.layers.noise import SeededNoise
from argen.pipeline import load
from argen.pipeline.settings import controls
from argen.recipes.run_metrics import heldout_bits
from argen.runtime.device import pick_device
from argen.runtime.presets import preset, preset_names
from bench.cases import Case
from bench.exactness import exactness_of
from bench.models import Published, generator, published, read_bytes

# Beside the presets of configs/decoder: LlamaGen's released loop, `sequential` compiled, and what
# the model is published with.
MORE_DECODERS = ("released", "compiled", "published")


def groups(settings: Mapping[str, Any]) -> Iterator[list[Case]]:
    """Yield a group a model, precision and batch size; its strategies take turns."""
    device = pick_device(settings["device"])
    known = (*MORE_DECODERS, *preset_names("decoder"))
    for precision in settings["precisions"]:
        check_precision(precision)
    for name in settings["decoders"]:
        if name not in known:
            raise UserError(f"There is no decoder {name!r}.{suggest(name, known)}")
    for name in settings["options"]:
        if name not in settings["decoders"] or name in MORE_DECODERS:
            raise UserError(f"options.{name} is for a decoder that is not measured.")
    if settings["trained"] is not None:
        yield from _trained(settings, device)
        return
    for model in settings["models"]:
        published(model)
    for model in settings["models"]:
        for precision in settings["precisions"]:
            made = partial(generator, model, device=device, **settings["changes"])
            network = made(dtype=torch.float32).eval()
            networks = dict.fromkeys(settings["decoders"], network)
            if "released" in networks:  # with its products, too: no packed weights
                networks["released"] = made(dtype=PRECISIONS[precision]).eval()
            for batch in settings["batches"]:
                to_precision(network, precision, rows=_rows(network, batch, settings["decoders"]))
                yield [
                    _case(owner, model, name, precision, batch, settings, published(model))
                    for name, owner in networks.items()
                ]


def _trained(settings: Mapping[str, Any], device: torch.device) -> Iterator[list[Case]]:
    """Yield the groups of a model directory: some strategies' pace depends on what it learnt."""
    for precision in settings["precisions"]:
        pipe = load(settings["trained"], device=device)
        how = Published(tokenizer="", settings=pipe.defaults)
        pipe.to_precision(precision)
        bits = None
        if settings["codes"] is not None:
            val = CodeDataset(settings["codes"], split="val")
            bits = heldout_bits(pipe.generator, val, device)
        for batch in settings["batches"]:
            rows = _rows(pipe.generator, batch, settings["decoders"])
            to_precision(pipe.generator, precision, rows=rows)
            rest = (precision, batch, settings, how, pipe.tokenizer, bits)
            yield [_case(pipe.generator, "trained", name, *rest) for name in settings["decoders"]]


def _case(
    network: Any,
    model: str,
    name: str,
    precision: str,
    batch: int,
    settings: Mapping[str, Any],
    how: Published,
    tokenizer: Any = None,
    bits: float | None = None,
) -> Case:
    device, seed = next(network.parameters()).device, settings["seed"]
    labels = torch.arange(batch, device=device) % network.conditioner.num_classes
    guidance, filters = controls(how.settings, {})
    columns = {"model": model, "precision": precision, "batch": batch, "decoder": name}
    times = settings["times"] if tokenizer is not None else 1
    rows, L = batch * (2 if guidance.active else 1), network.spec.length
    size = next(network.parameters()).element_size()  # of the cache too
    first = "sequential" if tokenizer is not None else "released"
    if name == "released":
        if precision == "int8":
            raise UserError("The released loop has no int8 weights: leave decoder `released` out.")
        if not isinstance(network, GPT) or how.tokenizer != "llamagen_vq16":
            raise UserError(f"The released loop here is LlamaGen's; {model} has another.")
        loop = ReleasedLoop(network, scale=float(how.settings["cfg"]))
        call = lambda: {"passes": loop(labels).shape[1]}  # noqa: E731
    else:
        decoder = decoder_of(name, network, how, tokenizer, **settings["options"].get(name, {}))
        exactness = exactness_of(decoder)

        def call() -> dict[str, Any]:
            passes = []
            for number in range(times):
                first_seed = seed + number * batch
                with torch.inference_mode():
                    result = decoder(
                        network,
                        network.conditioner((labels + number) % network.conditioner.num_classes),
                        SamplingContext(
                            guidance=guidance,
                            filters=filters,
                            noise=SeededNoise(range(first_seed, first_seed + batch), device=device),
                        ),
                    )
                passes.append(result.passes)
            mean = statistics.mean(passes)
            return {
                "passes": mean,
                "codes/pass": L / mean,
                "distribution": exactness,
                **({} if bits is None else {"bits/code": bits}),
            }

    read = read_bytes(network)
    flops = cached = 0.0
    if isinstance(network, NextToken):
        attention: Any = network.blocks[0].attention
        width = attention.kv_heads * attention.head_dim
        cached = 2.0 * len(network.blocks) * rows * width * (network.prefix_length + L / 2) * size
        flops = 2.0 * read / (1 if precision == "int8" else size) * rows * L
    return Case(
        columns,
        call=call,
        units=batch * times,
        unit="images",
        bytes=lambda result: (read + cached) * result["passes"] * times,
        flops=flops * times,
        dtype=precision,
        bases={"x base": _base(precision, first, settings)},
    )


def _rows(network: Any, batch: int, decoders: list[str]) -> int | None:
    """Return the rows of a product, None where a strategy among them leaves that open."""
    if not {"released", "sequential", "compiled"}.issuperset(decoders):
        return None
    return Sequential().max_rows(network, batch)


def _base(precision: str, first: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row is compared with: the first strategy, in float32 if that is there too."""
    compared = "float32" if "float32" in settings["precisions"] else precision
    return {"decoder": first, "precision": compared}


def decoder_of(
    name: str, network: Any, how: Published, tokenizer: Any = None, **options: Any
) -> Decoder:
    """Return the strategy of a name: a preset of configs/decoder, `compiled` or `published`.

    Args:
        name: of the strategy.
        network: that it drives.
        how: what `published` means for the network.
        tokenizer: of the codes, where it is at hand.
        options: that replace the preset's.

    Raises:
        IncompatibleError: if it cannot drive the network.
    """
    if name == "compiled":
        decoder: Decoder = Sequential(compile=True)
    elif name == "published" and how.decoder:
        decoder = build({**preset("decoder", how.decoder), **how.options}, trust=True)
    elif name == "published":
        decoder = default_decoder(network)
    else:
        decoder = build({**preset("decoder", name), **options}, trust=True)
    if tokenizer is not None:
        decoder.bind(tokenizer)
    decoder.check(network)
    return decoder
