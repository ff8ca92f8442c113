"""Replays the KL autoencoder of MAR: posterior, sample with recorded noise, decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from argen.interop import mar_klvae
from argen.interop.base import Imported
from argen.tokenizers.kl import KLTokenizer, patchify, unpatchify
from replays.fixture import Bound, Fixture

SYSTEMS = ("mar-klvae",)


class RecordedNoise:
    """One recorded normal draw for every latent."""

    def __init__(self, noise_BChw: Tensor) -> None:
        self.noise_BLC = noise_BChw.flatten(2).transpose(1, 2)

    def normal(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return the draw at the given positions."""
        return self.noise_BLC[:, positions]

    def uniform(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Not drawn."""
        raise NotImplementedError

    gumbel = uniform


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of an `AutoencoderKL` fixture."""
    image = fixture["image"]
    scale = fixture.config.get("scaling_factor", mar_klvae.SCALE)
    std = torch.tensor([1.0 / scale])

    def convert(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return mar_klvae.tokenizer_weights(weights, std=std)

    imported = Imported(
        mar_klvae.tokenizer_config(fixture.config, image_size=list(image.shape[2:])),
        convert(fixture.weights),
        fixture.name,
    )
    model = imported.build()
    assert isinstance(model, KLTokenizer)

    def compute(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return everything that is recorded, differentiable in the weights."""

        def call(method: str, *args: Tensor, **options: RecordedNoise) -> Tensor:
            return Bound(model).under(ours, method, *args, **options)

        model.image_size = (image.shape[2], image.shape[3])
        z = call("latents", image)
        posterior = model.bottleneck.posterior(z)
        found = {
            "encoder_features": Bound(model.encoder).under(
                {
                    k.removeprefix("encoder."): v
                    for k, v in ours.items()
                    if k.startswith("encoder.")
                },
                "forward",
                image,
            ),
            "moments": _channels_first(model.bottleneck.moments(z)),
            "mean": _channels_first(posterior.mean),
            "logvar": _channels_first(posterior.log_variance),
            "std": _channels_first(posterior.std),
            "kl": posterior.kl().flatten(1).sum(1),
            "reconstruction_from_mode": call("decode", call("encode", image)),
        }
        if "posterior_noise" in fixture.io:
            codes = call("encode", image, noise=RecordedNoise(fixture["posterior_noise"]))
            scaled = unpatchify(codes, model.spec.grid, 1)
            found |= {
                "latent_sample": scaled / scale,
                "latent_scaled": scaled,
                "reconstruction_from_sample": call("decode", codes),
            }
        if "random_scaled_latent" in fixture.io:
            latents = fixture["random_scaled_latent"]
            h, w = latents.shape[2:]
            model.image_size = (h * model.factor, w * model.factor)
            found["decoded_random"] = call("decode", patchify(latents, 1))
        return found

    with torch.no_grad():
        found = compute(imported.weights)
    return found | fixture.gradients(lambda name, ours: compute(ours)[name], convert)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)
