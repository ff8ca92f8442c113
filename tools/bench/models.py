"""Published generators at their full sizes with seeded random weights: speed needs no training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from argen.build import build
from argen.errors import UserError
from argen.generators.base import Generator
from argen.generators.next_token import NextToken
from argen.layers.adaln import Modulation
from argen.layers.cpu.int8 import Int8Linear
from argen.layers.cpu.packed import PackedLinear
from argen.layers.inference_precision import check_precision
from argen.runtime.presets import for_codes, preset
from argen.tokenizers.base import Tokenizer
from argen.zoo.meta import card
from argen.zoo.pairs import merged


@dataclass(frozen=True)
class Published:
    """What a generator is published with.

    Attributes:
        tokenizer: preset of its codes.
        decoder: preset of its strategy; None for the plainest that fits.
        settings: of guidance and filters, as `argen.sample` names them.
        options: of the strategy.
        changes: to the tokenizer's preset, nested as it is.
    """

    tokenizer: str
    decoder: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)


def published(name: str) -> Published:
    """Return what a generator preset goes with, by what its `_meta_` says of its best score.

    Raises:
        UserError: for a preset that there is not, or that names no tokenizer.
    """
    meta = card("generator", name)
    if meta is None or meta.tokenizer is None:
        raise UserError(f"generator={name} names no published tokenizer; choose another.")
    options = meta.decoder
    decoder = options.pop("name", None)
    return Published(meta.tokenizer, decoder, meta.settings, options, meta.tokenizer_changes)


def check(settings: Mapping[str, Any]) -> None:
    """Raise a UserError for a model or a precision that cannot be measured."""
    for precision in settings["precisions"]:
        check_precision(precision)
    for model in settings["models"]:
        published(model)


def tokenizer(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Tokenizer:
    """Return a tokenizer with random weights."""
    torch.manual_seed(0)
    return build(merged(preset("tokenizer", name), changes), trust=True).eval().to(device, dtype)


def generator(name: str, *, device: torch.device, dtype: torch.dtype, **changes: Any) -> Generator:
    """Return a generator with random weights that do not predict all codes alike."""
    how = published(name)
    with torch.device("meta"):
        spec = build(merged(preset("tokenizer", how.tokenizer), how.changes), trust=True).spec
    torch.manual_seed(0)
    with device:
        model = build({**for_codes(preset("generator", name), spec), **changes}, trust=True)
    if name.startswith("var_"):  # its inputs are made by the tokenizer's quantiser
        model.bind(tokenizer(how.tokenizer, device=device, dtype=dtype, changes=how.changes))
    for output in model.head.output_layers():
        nn.init.normal_(output.weight, std=0.02)
    return model.to(device, dtype)


def read_bytes(model: nn.Module) -> int:
    """Return the bytes of weights that a pass reads: all but embedding tables.

    Nor modulations of next-token generators, which serve many passes.
    """
    made: list[nn.Module] = []
    aside = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    if isinstance(model, NextToken):
        made = [module.proj for module in model.modules() if isinstance(module, Modulation)]
        aside |= {p for module in made for p in module.parameters()}
    read = sum(p.numel() * p.element_size() for p in model.parameters() if p not in aside)
    for module in model.modules():
        if module not in made and isinstance(module, Int8Linear | PackedLinear):
            size = 1 if isinstance(module, Int8Linear) else module.weight.element_size()
            read += module.in_features * module.out_features * size
    return read
