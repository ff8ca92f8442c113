"""Which tokenizers a generator preset goes with, found by building both without memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch

from argen.build import build
from argen.errors import UserError
from argen.runtime.presets import for_codes, preset
from argen.zoo.meta import Meta, card, published


@cache
def tokenizer_of(name: str) -> Any:
    """Return the network of a tokenizer preset on the meta device: shapes and no values."""
    with torch.device("meta"):
        return build(preset("tokenizer", name), trust=True)


@cache
def partner_of(name: str) -> Any:
    """Return the tokenizer that a published generator preset names, on the meta device.

    Raises:
        UserError: if the preset names none.
    """
    meta = card("generator", name)
    if meta is None or meta.tokenizer is None:
        raise UserError(f"generator={name} names no tokenizer under _meta_.")
    config = partner_config(meta)
    if config == preset("tokenizer", meta.tokenizer):
        return tokenizer_of(meta.tokenizer)
    with torch.device("meta"):
        return build(config, trust=True)


def partner_config(meta: Meta) -> dict[str, Any]:
    """Return the preset of a generator's tokenizer, for the images of the best published score."""
    if meta.tokenizer is None:
        raise UserError("This generator names no tokenizer under _meta_.")
    size = {} if meta.image_size is None else {"image_size": meta.image_size}
    return merged(preset("tokenizer", meta.tokenizer), {**size, **meta.tokenizer_changes})


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with some of its nested values replaced or added."""
    new = dict(config)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(new.get(key), Mapping)
        new[key] = merged(new[key], value) if both else value
    return new


def generator_on(name: str, tokenizer: Any) -> Any:
    """Return the network of a generator preset for a tokenizer's codes, on the meta device.

    Raises:
        UserError: if it cannot model them.
    """
    with torch.device("meta"):
        generator = build(for_codes(preset("generator", name), tokenizer.spec), trust=True)
        generator.bind(tokenizer)
    return generator


def network_of(group: str, name: str) -> Any:
    """Return the network of a published preset on the meta device; a generator on its tokenizer."""
    return tokenizer_of(name) if group == "tokenizer" else generator_on(name, partner_of(name))


def fitting(name: str, tokenizers: Iterable[str] | None = None) -> list[str]:
    """Return the tokenizer presets whose codes a generator preset can model.

    Args:
        name: of the generator preset.
        tokenizers: presets to try; the published ones when None.
    """
    tried: dict[Any, bool] = {}
    names = [n for n, _ in published("tokenizer")] if tokenizers is None else tokenizers
    fits = []
    for other in names:
        tokenizer = tokenizer_of(other)
        # A generator sees the codes and, where it is bound to it, the quantiser.
        quantizer = type(getattr(tokenizer, "quantizer", None))
        key = (tokenizer.spec.fingerprint(), type(tokenizer), quantizer)
        if key not in tried:
            tried[key] = _fits(name, tokenizer)
        if tried[key]:
            fits.append(other)
    return fits


def _fits(name: str, tokenizer: Any) -> bool:
    try:
        generator_on(name, tokenizer)
    except UserError:
        return False
    return True
