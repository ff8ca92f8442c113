"""Replays the LFQ tokenizers of Open-MAGVIT2 and WeTok."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from argen.interop import open_magvit2, wetok
from argen.interop.base import Imported
from argen.tokenizers.cnn import CNNTokenizer
from argen.tokenizers.quantizers.lfq import LFQ
from replays.fixture import Fixture

SYSTEMS = (
    "open-magvit2",
    "wetok",
)


class RecordedNormal:
    """Gives back one recorded map (B, C, h, w) of normal draws."""

    def __init__(self, draws: Tensor) -> None:
        self.draws = draws

    def normal(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return the draws (B, n, C) of raster positions (n,)."""
        return self.draws.flatten(2).transpose(1, 2)[:, positions]


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a `VQModel` fixture."""
    grouped = "WeTok" in fixture.card["class"]
    system = wetok if grouped else open_magvit2
    image = fixture["image"]
    config = system.tokenizer_config(fixture.config, image_size=list(image.shape[2:]))
    found: dict[str, Tensor] = {}
    for prefix, ema in (("", False), ("ema_", True)):
        if ema and not any(name.startswith(prefix) for name in fixture.expected):
            continue
        weights = system.tokenizer_weights(fixture.weights, ema=ema)
        model = Imported(config, weights, fixture.name).build()
        assert isinstance(model, CNNTokenizer)
        found |= {f"{prefix}{k}": v for k, v in _run(model, fixture, image).items()}
    return found


def _run(model: CNNTokenizer, fixture: Fixture, image: Tensor) -> dict[str, Tensor]:
    draws = fixture.io.get("noise")
    noise = None if draws is None else RecordedNormal(draws)
    quantizer = model.quantizer
    assert isinstance(quantizer, LFQ)
    with torch.no_grad():
        z = model.latents(image)
        ids = model.encode(image)  # B L or B L G
        codes = model.quantizer.lookup(ids.unflatten(1, model.spec.grid))
        found = {
            "latent": z.permute(0, 3, 1, 2),
            "indices": ids.flatten(),
            "quantized": quantizer(z).z.permute(0, 3, 1, 2),
            "reconstruction": model.decode(ids, noise=noise),
            "codes_from_indices": codes.permute(0, 3, 1, 2),
        }
        if ids.ndim == 3:
            # A factorised fixture records one flat tensor a sub-token.
            names = ("pre", "post") if ids.shape[-1] == 2 else ()
            for i, column in enumerate(ids.unbind(-1)):
                for suffix in (str(i), *names[i : i + 1]):
                    found[f"indices_{suffix}"] = found[f"{suffix}_indices"] = column.flatten()
        quantizer.train()
        losses = quantizer(z).losses
        weights = open_magvit2.loss_weights(fixture.config)
    return found | {
        "per_sample_entropy": losses["sample_entropy"],
        "codebook_entropy": losses["batch_entropy"],
        "commitment": losses["commitment"],
        "entropy_aux_loss": sum(weight * losses[name] for name, weight in weights.items()),
    }
