"""Replays the Bernoulli autoencoder of Binary Latent Diffusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from argen.interop import binary_ae
from argen.interop.base import Imported
from argen.tokenizers.cnn import CNNTokenizer
from argen.tokenizers.quantizers.bernoulli import Bernoulli, indecision
from replays.fixture import Fixture

SYSTEMS = ("binary-ae",)


class RecordedUniform:
    """Gives back one recorded map (B, bits, h, w) of uniform draws."""

    def __init__(self, draws: Tensor) -> None:
        self.draws = draws

    def uniform(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return the draws (B, n, bits) of raster positions (n,)."""
        return self.draws.flatten(2).transpose(1, 2)[:, positions]


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a `BinaryAutoEncoder` fixture."""
    image = fixture["image"]
    model = Imported(
        binary_ae.tokenizer_config(fixture.config, image_size=list(image.shape[2:])),
        binary_ae.tokenizer_weights(fixture.weights),
        fixture.name,
    ).build()
    assert isinstance(model, CNNTokenizer)
    quantizer = model.quantizer
    assert isinstance(quantizer, Bernoulli)

    def as_map(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)

    def as_code(codes: Tensor) -> Tensor:
        grid = quantizer.values(codes).unflatten(1, model.spec.grid)
        return as_map(grid)

    with torch.no_grad():
        z = model.latents(image)
        activations = quantizer.activations(z)
        codes = model.encode(image)  # without noise: the likelier value
        found = {
            "encoder_features": as_map(z),
            "probabilities": as_map(
                activations if quantizer.signed else quantizer.probabilities(z)
            ),
            "code": as_code(codes),
            "quantized": as_map(quantizer.lookup(codes.unflatten(1, model.spec.grid))),
            "reconstruction": model.decode(codes),
            # The reference takes the sigmoid of what is already a probability (or a tanh).
            "codebook_loss": indecision(torch.sigmoid(activations)),
        }
        if "uniform" in fixture.io:
            # `deterministic` in the card is what the reference does unless told otherwise.
            quantizer.deterministic = False
            drawn = model.encode(image, noise=RecordedUniform(fixture["uniform"]))
            found["code_sampled"] = as_code(drawn)
            found["reconstruction_sampled"] = model.decode(drawn)
            found["quantized_sampled"] = as_map(
                quantizer.lookup(drawn.unflatten(1, model.spec.grid))
            )
        if "code" in fixture.inputs:
            given = fixture["code"].flatten(2).transpose(1, 2)
            found["code_decoded"] = model.decode((given > 0).long())
    return found
