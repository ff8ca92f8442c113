"""Replays the IBQ tokenizer."""

from __future__ import annotations

import torch
from torch import Tensor

from argen.interop import ibq
from argen.interop.base import Imported
from argen.tokenizers.cnn import CNNTokenizer
from replays.fixture import Fixture

SYSTEMS = ("ibq",)


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of an `IBQ` fixture."""
    image = fixture["image"]
    config = ibq.tokenizer_config(fixture.config, image_size=list(image.shape[2:]))
    found: dict[str, Tensor] = {}
    for prefix, ema in (("", False), ("ema_", True)):
        if ema and not any(name.startswith(prefix) for name in fixture.expected):
            continue
        weights = ibq.tokenizer_weights(fixture.weights, ema=ema)
        model = Imported(config, weights, fixture.name).build()
        assert isinstance(model, CNNTokenizer)
        found |= {f"{prefix}{k}": v for k, v in _run(model, fixture, image).items()}
    return found


def _run(model: CNNTokenizer, fixture: Fixture, image: Tensor) -> dict[str, Tensor]:
    weights = ibq.loss_weights(fixture.config)
    with torch.no_grad():
        z = model.latents(image)
        quantized = model.quantizer(z)
        ids = model.encode(image)
        codes = model.quantizer.lookup(ids.unflatten(1, model.spec.grid))
        found = {
            "latent": z.permute(0, 3, 1, 2),
            "indices": ids.flatten(),
            "quantized": quantized.z.permute(0, 3, 1, 2),
            "codes_from_indices": codes.permute(0, 3, 1, 2),
            "reconstruction": model.decode_latents(quantized.z),
        }
    losses = {name: weights[name] * value for name, value in quantized.losses.items()}
    found["quant_loss"] = sum(losses[name] for name in ("index", "codebook", "commitment"))
    if "sample_entropy" in losses:
        found["sample_entropy"] = quantized.losses["sample_entropy"]
        found["avg_entropy"] = quantized.losses["batch_entropy"]
        found["entropy_loss"] = losses["sample_entropy"] + losses["batch_entropy"]
    return found
