"""Replays MaskGIT-VQGAN, the 2-D tokenizer behind TiTok and RAR."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from argen.interop import maskgit_vqgan
from argen.interop.base import Imported
from argen.tokenizers.cnn import CNNTokenizer
from argen.tokenizers.quantizers.vq import VQ
from replays.fixture import Fixture

SYSTEMS = ("MaskGIT-VQGAN",)


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a `PretrainedTokenizer` fixture.

    The reference takes and gives images in [0, 1]; the tokenizer, as all of argen's, [-1, 1].
    """
    side = list(fixture["image"].shape[2:]) if "image" in fixture.io else None
    imported = Imported(
        maskgit_vqgan.tokenizer_config(
            fixture.config, image_size=side or fixture.config.get("resolution", 256)
        ),
        maskgit_vqgan.tokenizer_weights(fixture.weights),
        fixture.name,
    )
    model = imported.build()
    assert isinstance(model, CNNTokenizer)
    with torch.no_grad():
        found = _from_codes(fixture, model)
        if "image" in fixture.io:
            found |= _from_image(fixture, model)
    return found


def _unit(images: Tensor) -> Tensor:
    """Map [-1, 1] to [0, 1]."""
    return (images + 1) / 2


def _decode(model: CNNTokenizer, ids: Tensor) -> Tensor:
    """Decode ids of a square (B, n) or any (B, h, w) grid, as it comes."""
    if ids.ndim == 2:
        side = round(ids.shape[1] ** 0.5)
        ids = (
            ids.view(-1, side, side)
            if side * side == ids.shape[1]
            else ids.unflatten(1, model.spec.grid)
        )
    return _unit(model.decode_latents(model.quantizer.lookup(ids)))


def _from_image(fixture: Fixture, model: CNNTokenizer) -> dict[str, Tensor]:
    z = model.latents(fixture["image"] * 2 - 1)
    quantized = model.quantizer(z)
    assert quantized.ids is not None
    assert isinstance(model.quantizer, VQ)
    decoded = _unit(model.decode_latents(quantized.z))
    weights = maskgit_vqgan.loss_weights(fixture.config)
    found = {
        "latents": z.permute(0, 3, 1, 2),
        "indices": quantized.ids.flatten(1),
        "quantized": quantized.z.permute(0, 3, 1, 2),
        "quantizer_loss": sum(weights[k] * v for k, v in quantized.losses.items()),
        "decoded_unclamped": decoded,
        "reconstruction": decoded.clamp(0, 1),
    }
    for name in fixture.expected:
        if name.startswith("soft_code"):
            said = re.search(r"temp\w* ?=? ?([\d.]*\d)", fixture.description(name))
            temperature = float(said.group(1)) if said else 1.0
            probs = model.quantizer.probabilities(z, temperature=temperature).flatten(1, 2)
            found[name] = probs[:, : fixture[name].shape[1]]
    return found


def _from_codes(fixture: Fixture, model: CNNTokenizer) -> dict[str, Tensor]:
    """Decode recorded codes: `decoded_X` is made of the input `X` or `random_X`."""
    found = {}
    for name in fixture.expected:
        stem = name.removeprefix("decoded_").removesuffix("_unclamped")
        source = next((n for n in (stem, f"random_{stem}") if n in fixture.inputs), None)
        if name.startswith("decoded_") and source is not None:
            decoded = _decode(model, fixture[source])
            whole = name.endswith("_unclamped") or "not clamped" in fixture.description(name)
            found[name] = decoded if whole else decoded.clamp(0, 1)
    return found
