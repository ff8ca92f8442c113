"""Seconds of encoding and decoding; rows compare with eager float32 in the contiguous layout.

That row runs what the released decoders run: the same convolutions, norms and attention, NCHW, in
float32, uncompiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from argen.errors import UserError, suggest
from argen.runtime.device import pick_device
from argen.runtime.flops import count_flops
from argen.runtime.presets import preset_names
from bench.cases import Case
from bench.models import tokenizer

CHOICES = {
    "operations": ("encode", "decode"),
    "precisions": ("float32", "bfloat16"),
    "layouts": ("contiguous", "channels_last"),
    "modes": ("eager", "compiled"),
}


def groups(settings: Mapping[str, Any]) -> Iterator[list[Case]]:
    """Yield a group a model and operation; precisions, layouts and modes take turns."""
    for name, choices in CHOICES.items():
        for value in settings[name]:
            if value not in choices:
                raise UserError(f"{name} has no {value!r}; choose from {', '.join(choices)}.")
    for model in settings["models"]:
        if model not in preset_names("tokenizer"):
            close = suggest(model, preset_names("tokenizer"))
            raise UserError(f"There is no tokenizer preset {model!r}.{close}")
    for model in settings["models"]:
        for operation in settings["operations"]:
            yield [
                _case(model, operation, precision, layout, mode, settings)
                for precision in settings["precisions"]
                for layout in settings["layouts"]
                for mode in settings["modes"]
            ]


def _case(
    model: str, operation: str, precision: str, layout: str, mode: str, settings: Mapping[str, Any]
) -> Case:
    device, batch = pick_device(settings["device"]), settings["batch"]
    dtype = getattr(torch, precision)
    network = tokenizer(model, device=device, dtype=dtype)
    if layout == "channels_last":
        network = network.to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    images = torch.rand(batch, 3, *network.image_size, device=device).to(dtype) * 2 - 1
    if layout == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        codes = network.encode(images)
    function = network.encode if operation == "encode" else network.decode
    inputs = images if operation == "encode" else codes
    flops = count_flops(lambda: _run(function, inputs))
    if mode == "compiled":
        function = torch.compile(function)
    return Case(
        {
            "model": model,
            "operation": operation,
            "precision": precision,
            "layout": layout,
            "mode": mode,
        },
        call=lambda: _run(function, inputs),
        units=batch,
        unit="images",
        flops=flops,
        dtype=precision,
        bases={"x base": {"precision": "float32", "layout": "contiguous", "mode": "eager"}},
    )


def _run(function: Any, inputs: Tensor) -> None:
    with torch.inference_mode():
        function(inputs)
