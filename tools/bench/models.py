"""Published generators at their full sizes with seeded random weights: speed needs no training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from argen.build import build
from argen.errors import UserError, suggest
from argen.generators.base import Generator
from argen.generators.next_token import NextToken
from argen.layers.adaln import Modulation
from argen.layers.cpu.int8 import Int8Linear
from argen.layers.cpu.packed import PackedLinear
from argen.layers.inference_precision import check_precision
from argen.runtime.presets import for_codes, preset, preset_names
from argen.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Published:
    """What a generator is published with.

    Attributes:
        tokenizer: preset of its codes.
        decoder: preset of its strategy; None for the plainest that fits.
        settings: of guidance and filters, as `argen.sample` names them.
        options: of the strategy.
    """

    tokenizer: str
    decoder: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


# By the start of the preset's name; settings are those of its configs/generator file.
PUBLISHED = {
    "llamagen_": Published("llamagen_vq16", settings={"cfg": 2.0}),
    "nar_": Published("llamagen_vq16", settings={"cfg": 2.0}),
    "rar_": Published(
        "maskgit_vqgan",
        settings={"cfg": 16.0, "cfg_schedule": "power_cosine", "cfg_power": 2.75},
    ),
    "var_": Published(
        "var_vqvae",
        settings={
            "cfg": 2.5,
            "cfg_schedule": "linear",
            "cfg_inclusive": True,
            "top_k": 900,
            "top_p": 0.96,
        },
    ),
    "maskgit_titok_l32": Published(
        "titok_l32", settings={"cfg": 5.5, "cfg_schedule": "linear"}, options={"steps": 8}
    ),
    "mar_": Published(
        "kl16", "masked", settings={"cfg": 2.9, "cfg_schedule": "linear"}, options={"steps": 64}
    ),
    "xar_": Published("kl16", settings={"cfg": 2.7, "cfg_schedule": "linear"}),
}


def published(name: str) -> Published:
    """Return what a generator preset goes with.

    Raises:
        UserError: for a preset that there is not, or that none of the above covers.
    """
    if name not in preset_names("generator"):
        close = suggest(name, preset_names("generator"))
        raise UserError(f"There is no generator preset {name!r}.{close}")
    for start, what in PUBLISHED.items():
        if name.startswith(start):
            return what
    raise UserError(f"No tokenizer is known for {name}; choose one of {', '.join(PUBLISHED)}...")


def check(settings: Mapping[str, Any]) -> None:
    """Raise a UserError for a model or a precision that cannot be measured."""
    for precision in settings["precisions"]:
        check_precision(precision)
    for model in settings["models"]:
        published(model)


def tokenizer(name: str, *, device: torch.device, dtype: torch.dtype) -> Tokenizer:
    """Return a tokenizer with random weights."""
    torch.manual_seed(0)
    return build(preset("tokenizer", name)).eval().to(device, dtype)


def generator(name: str, *, device: torch.device, dtype: torch.dtype, **changes: Any) -> Generator:
    """Return a generator with random weights that do not predict all codes alike."""
    with torch.device("meta"):
        spec = build(preset("tokenizer", published(name).tokenizer)).spec
    torch.manual_seed(0)
    with device:
        model = build({**for_codes(preset("generator", name), spec), **changes})
    if name.startswith("var_"):  # its inputs are made by the tokenizer's quantiser
        model.bind(tokenizer(published(name).tokenizer, device=device, dtype=dtype))
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
