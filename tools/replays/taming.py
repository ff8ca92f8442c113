"""Replays taming-transformers' tokenizers: `VQModel` and `GumbelVQ`, with their training losses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from argen.build import build
from argen.interop.base import Imported, StateDict
from argen.interop.taming import taming_objective
from argen.interop.taming import tokenizer as taming
from argen.objectives.objective import Objective
from argen.tokenizers.base import TokenizerOutput
from argen.tokenizers.cnn import CNNTokenizer
from replays import net2net
from replays.fixture import Bound, Fixture

SYSTEMS = ("taming-transformers",)


class RecordedGumbel:
    """Gives back Gumbel draws (B, K, h, w) that a run recorded."""

    def __init__(self, draws_BKhw: Tensor) -> None:
        self.draws = draws_BKhw.flatten(2).transpose(1, 2)  # B hw K

    def gumbel(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return the draws (B, n, K) of positions (n,)."""
        return self.draws[:, positions]


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a `VQModel`, `GumbelVQ` or `Net2NetTransformer` fixture."""
    if fixture.card["class"] == "Net2NetTransformer":
        return net2net.replay(fixture)
    used = fixture.weights.get("quantize.used")
    config = taming.tokenizer_config(
        fixture.config,
        image_size=list(fixture["image"].shape[2:]),
        used=None if used is None else len(used),
    )
    imported = Imported(config, taming.tokenizer_weights(fixture.weights), fixture.name)
    model = imported.build()
    assert isinstance(model, CNNTokenizer)
    with torch.no_grad():
        found = _evaluation(fixture, model)
        if "quantize.embed.weight" in fixture.weights:
            found |= _gumbel(fixture, model)
    return found | _training(fixture, model)


def _map(x: Tensor) -> Tensor:
    """Channels first, as the reference has them."""
    return x.permute(0, 3, 1, 2)


def _noise(fixture: Fixture, name: str) -> RecordedGumbel | None:
    return RecordedGumbel(fixture[name]) if name in fixture.io else None


def _evaluation(fixture: Fixture, model: CNNTokenizer) -> dict[str, Tensor]:
    image = fixture["image"]
    z = model.latents(image)
    quantized = model.quantizer(z, noise=_noise(fixture, "gumbel_noise"))
    assert quantized.ids is not None
    reconstruction = model.decode_latents(quantized.z)
    found = {
        "encoder_out": model.encoder(image),
        "latent": _map(z),
        "indices": quantized.ids,
        "quantized": _map(quantized.z),
        "reconstruction": reconstruction,
    }
    if "kl" in quantized.losses:
        found["kl_loss"] = fixture.config.get("kl_weight", 1e-8) * quantized.losses["kl"]
    else:
        found["codebook_loss"] = (
            taming.BETA * quantized.losses["codebook"] + quantized.losses["commitment"]
        )
    # The reference gives flat indices, or (B, h, w) with `sane_index_shape`.
    if "indices" in fixture.io and fixture["indices"].numel() == quantized.ids.numel():
        found["indices"] = quantized.ids.reshape(fixture["indices"].shape)
    if "code" in fixture.io:
        code = fixture["code"].reshape(_grid(fixture, "code", model))
        found["code_embedding"] = _map(model.quantizer.lookup(code))
        found["code_decoded"] = model.decode_latents(model.quantizer.lookup(code))
    if fixture.wants("disc_real_eval", "disc_fake_eval"):
        judge = _objective(fixture).eval().discriminator
        assert judge is not None
        found["disc_real_eval"] = judge(image)
        found["disc_fake_eval"] = judge(reconstruction)
    return found


def _grid(fixture: Fixture, name: str, model: CNNTokenizer) -> tuple[int, int, int]:
    """Return (B, h, w) of recorded codes, from what was made of them."""
    if fixture[name].ndim == 3:
        return tuple(fixture[name].shape)  # type: ignore[return-value]
    if f"{name}_embedding" in fixture.io:
        B, _, h, w = fixture[f"{name}_embedding"].shape
        return B, h, w
    if f"{name}_decoded" in fixture.io:
        B, _, height, width = fixture[f"{name}_decoded"].shape
        return B, height // model.factor, width // model.factor
    return (len(fixture["image"]), *model.spec.grid)


def _gumbel(fixture: Fixture, model: CNNTokenizer) -> dict[str, Tensor]:
    z = model.latents(fixture["image"])
    quantizer = model.quantizer
    likeliest = quantizer(z)
    assert likeliest.ids is not None
    found = {
        "code_logits": _map(quantizer.logits(z)),
        "indices_argmax": likeliest.ids,
        "argmax_embedding": _map(quantizer.lookup(likeliest.ids)),
        "argmax_reconstruction": model.decode_latents(quantizer.lookup(likeliest.ids)),
    }
    quantizer.train()
    for name in fixture.expected:
        if not name.startswith("quantized_train"):
            continue
        stated = re.search(r"temp(?:erature)? ?=? ?([\d.]+\d)", fixture.card.get("procedure", ""))
        temperature = fixture.number(name, "temperature", float(stated.group(1)) if stated else 1.0)
        quantizer.temperature.fill_(temperature)
        text = fixture.description(name)
        quantizer.straight_through = "straight_through False" not in text and "soft" not in name
        noise = _noise(fixture, "gumbel_noise_train") or _noise(fixture, "gumbel_noise")
        found[name] = _map(quantizer(z, noise=noise).z)
    quantizer.eval()
    quantizer.at_step(0)
    quantizer.straight_through = True
    return found


def _objective(fixture: Fixture) -> Objective:
    """Return the training losses with a discriminator that has the recorded weights."""
    objective = build(taming_objective.objective_config(fixture.config), trust=True)
    weights = taming_objective.discriminator_weights(fixture.weights)
    if objective.discriminator is not None:
        objective.discriminator.load_state_dict(weights)
    return objective


def _convert(weights: Mapping[str, Tensor]) -> StateDict:
    """Translate tokenizer and discriminator, each under its own prefix."""
    judge = taming_objective.discriminator_weights(weights)
    return {f"tokenizer.{k}": v for k, v in taming.tokenizer_weights(weights).items()} | {
        f"objective.discriminator.{k}": v for k, v in judge.items()
    }


def _part(weights: Mapping[str, Tensor], prefix: str) -> StateDict:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _training(fixture: Fixture, model: CNNTokenizer) -> dict[str, Tensor]:
    if not any(name.startswith(("train_", "grad_")) for name in fixture.expected):
        return {}
    loss = fixture.config["lossconfig"]["params"]
    start = loss["disc_start"]
    image = fixture["image"]
    noise = _noise(fixture, "gumbel_noise_train")
    model.train()

    def forward(ours: Mapping[str, Tensor]) -> TokenizerOutput:
        return Bound(model).under(_part(ours, "tokenizer."), "forward", image, noise=noise)

    def tokenizer_side(name: str, step: int, ours: Mapping[str, Tensor]) -> Tensor:
        total, terms = Bound(_objective(fixture).train()).under(
            _part(ours, "objective."),
            "tokenizer_loss",
            image,
            forward(ours),
            step=step,
            last_layer=ours["tokenizer.decoder.conv_out.weight"],
        )
        return {
            "loss": total,
            "nll": terms["l1"],
            "g": terms.get("adversarial", total.new_zeros(())),
            "d_weight": terms.get("adaptive_weight", total.new_zeros(()))
            * loss.get("disc_weight", 1.0),
        }[name]

    def discriminator_side(step: int, ours: Mapping[str, Tensor]) -> Tensor:
        objective = _objective(fixture).train()
        if not objective.trains_discriminator(step):
            return image.new_zeros(())
        total, _ = Bound(objective).under(
            _part(ours, "objective."), "discriminator_loss", image, forward(ours).images, step=step
        )
        return total

    values: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
        "train_ae_loss": partial(tokenizer_side, "loss", start),
        "train_ae_loss_before_start": partial(tokenizer_side, "loss", start - 1),
        "train_nll_loss": partial(tokenizer_side, "nll", start),
        "train_g_loss": partial(tokenizer_side, "g", start),
        "train_d_weight": partial(tokenizer_side, "d_weight", start),
        "train_disc_loss": partial(discriminator_side, start),
        "train_disc_loss_before_start": partial(discriminator_side, start - 1),
    }

    found = {
        name: value(_convert(fixture.leaves()))
        for name, value in values.items()
        if fixture.wants(name)
    }
    return found | fixture.gradients(lambda name, ours: values[name](ours), _convert)
