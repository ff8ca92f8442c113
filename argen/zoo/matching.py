"""Which published preset an imported model is: by class and arguments, never by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from argen.build import META, TARGET, build
from argen.errors import UserError
from argen.runtime.presets import preset
from argen.zoo.meta import Meta, published
from argen.zoo.pairs import generator_on, merged

# Follow from the tokenizer or from the images asked for, or say how a head is sampled.
NOT_COMPARED = ("spec", "image_size", "sampler", "sampling_steps", META)
# Parts of the names of arguments that count in training alone, which no file of weights shows.
TRAINING = ("drop", "init", "smoothing", "unmasked", "mask_", "repeats", "anneal")
CLOSE = 1e-6


def matching(generator: Any, tokenizer: Any) -> tuple[list[str], Meta] | None:
    """Return the published generator presets that a pipeline's parts are built as.

    Presets with the same generator and other sampling settings are told apart by their tokenizers.

    Args:
        generator: with the configuration that it was imported with as `config`.
        tokenizer: of its codes, likewise.

    Returns:
        Their names, more than one where they differ in weights alone, and what is published of the
        first; None where there is none, or where several with other settings remain.
    """
    found = [
        (name, meta)
        for name, meta in published("generator")
        if same_arguments(preset("generator", name), generator.config)
        and same_weights(generator, partial(generator_on, name, tokenizer))
    ]
    if _sampled(found) > 1:
        found = [(name, meta) for name, meta in found if _on_its_tokenizer(meta, tokenizer)]
    if _sampled(found) != 1:
        return None
    return [name for name, _ in found], found[0][1]


def _sampled(found: list[tuple[str, Meta]]) -> int:
    """Return how many different sampling settings presets have."""
    return len({str(meta.sampling) for _, meta in found})


def same_arguments(ours: Any, other: Any) -> bool:
    """Whether two configurations name the same classes and no argument that both state differs."""
    if isinstance(ours, Mapping) and isinstance(other, Mapping):
        if ours.get(TARGET) != other.get(TARGET):
            return False
        return all(
            same_arguments(ours[key], other[key])
            for key in (set(ours) & set(other)) - set(NOT_COMPARED)
            if not any(part in key for part in TRAINING)
        )
    if isinstance(ours, list | tuple) and isinstance(other, list | tuple):
        return len(ours) == len(other) and all(map(same_arguments, ours, other))
    if isinstance(ours, float) or (isinstance(other, float) and not isinstance(ours, bool)):
        return _number(ours) and _number(other) and abs(ours - other) <= CLOSE * abs(ours)
    return bool(ours == other)


def same_weights(module: Any, make: Callable[[], Any]) -> bool:
    """Whether what `make` builds has the same weights by name and shape."""
    try:
        made = make()
    except UserError:
        return False
    return _shapes(module) == _shapes(made)


def _on_its_tokenizer(meta: Meta, tokenizer: Any) -> bool:
    if meta.tokenizer is None:
        return False
    size = tokenizer.config.get("image_size")
    images = {} if size is None else {"image_size": size}
    config = merged(preset("tokenizer", meta.tokenizer), {**meta.tokenizer_changes, **images})

    def make() -> Any:
        with torch.device("meta"):
            return build(config, trust=True)

    return same_arguments(config, tokenizer.config) and same_weights(tokenizer, make)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shapes(module: Any) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters()}
