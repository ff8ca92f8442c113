"""Replays VAR: multi-scale tokenizer, and the next-scale generator with its tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from argen.decoding.base import Decoder, DecodeResult
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.decoding.smooth import SmoothScales
from argen.generators.var import VAR
from argen.interop import var, var_vqvae
from argen.interop.base import Imported
from argen.layers.noise import SeededNoise
from argen.tokenizers.multiscale import MultiScaleTokenizer
from replays.fixture import Bound, Fixture

SYSTEMS = (
    "var",
    "var-vqvae",
)


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a tokenizer fixture, or of one with a generator."""
    return _tokenizer(fixture) if fixture.system == "var-vqvae" else _generator(fixture)


def _tokenizer(fixture: Fixture) -> dict[str, Tensor]:
    imported = Imported(
        var_vqvae.tokenizer_config(fixture.config),
        var_vqvae.tokenizer_weights(fixture.weights),
        fixture.name,
    )
    model = imported.build()
    assert isinstance(model, MultiScaleTokenizer)
    image, quantizer = fixture["image"], model.quantizer
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        z_BhwC = model.latents(image)
        ids_BL = model.encode(image)
        maps = quantizer.maps(ids_BL)
        ends = model.preview_lengths
        found["encoder_out"] = model.encoder(image)
        found["z"] = z_BhwC.permute(0, 3, 1, 2)
        found["var_input"] = quantizer.next_scale_inputs(ids_BL)
        found["rec_progressive"] = torch.stack(
            [model.decode(ids_BL, length=end).clamp(-1, 1) for end in ends]
        )
        found["rec_train"] = model(image).images
        for k, (h, w) in enumerate(quantizer.scales):
            found[f"idx_{k}"] = ids_BL[:, ends[k] - h * w : ends[k]]
            found[f"fhat_{k}"] = maps[k]
            found[f"next_input_{k}"] = maps[k]
            if k + 1 < len(maps):
                following = quantizer.downsample_to(maps[k], k + 1).transpose(1, 2)
                found[f"next_input_{k}"] = following.unflatten(2, quantizer.scales[k + 1])
    if "alt_image" in fixture.io:
        found |= _other_pyramid(model, fixture)
    return found | _quantiser_gradients(model, imported, fixture) | _statistics(model, fixture)


def _other_pyramid(model: MultiScaleTokenizer, fixture: Fixture) -> dict[str, Tensor]:
    listed = re.search(r"v_patch_nums set to the list (\[\[.*?\]\])", fixture.card["procedure"])
    named = [re.search(r"at scale \((\d+), (\d+)\)", fixture.description(n)) for n in fixture.io]
    scales = json.loads(listed[1]) if listed else [(int(m[1]), int(m[2])) for m in named if m]
    with torch.no_grad():
        ids_BL = model.encode(fixture["alt_image"], scales=scales)
        image = model.decode(ids_BL, scales=scales).clamp(-1, 1)
    parts = ids_BL.split([h * w for h, w in scales], dim=1)
    return {f"alt_idx_{k}": part for k, part in enumerate(parts)} | {"alt_rec": image}


def _quantiser_gradients(
    model: MultiScaleTokenizer, imported: Imported, fixture: Fixture
) -> dict[str, Tensor]:
    z_BhwC = model.latents(fixture["image"]).detach().requires_grad_()
    weigh = var_vqvae.loss_weights(fixture.config)
    quantized = model.quantizer(z_BhwC)
    loss = sum((weigh[k] * v for k, v in quantized.losses.items()), start=z_BhwC.new_zeros(()))
    codebook = model.quantizer.codebook.weight
    of_loss = torch.autograd.grad(loss, (z_BhwC, codebook), retain_graph=True)
    (of_square,) = torch.autograd.grad(quantized.z.square().sum(), z_BhwC)

    def training(name: str, ours: Mapping[str, Tensor]) -> Tensor:
        out = Bound(model).under(ours, "forward", fixture["image"])
        losses = sum(weigh[k] * v for k, v in out.losses.items())
        return {"vq_loss": losses, "rec_train": out.images}[name]

    return {
        "vq_loss": loss.detach().reshape(1),
        "fhat_train": quantized.z.detach().permute(0, 3, 1, 2),
        "grad_vq_loss_z": of_loss[0].permute(0, 3, 1, 2),
        "grad_vq_loss_codebook": of_loss[1],
        "grad_sumsq_fhat_z": of_square.permute(0, 3, 1, 2),
    } | fixture.gradients(training, var_vqvae.tokenizer_weights)


def _statistics(model: MultiScaleTokenizer, fixture: Fixture) -> dict[str, Tensor]:
    """Take training steps on the image, turned around along batch and width every other time."""
    image, hits = fixture["image"], model.quantizer.hits
    vectors = image.shape[0] * model.spec.grid[0] * model.spec.grid[1]
    found = {"usages_before": 100 * hits.usage(vectors)}
    steps = [int(m[1]) for name in fixture.expected if (m := re.search(r"_after_(\d+)$", name))]
    model.train()
    with torch.no_grad():
        for step in range(1, max(steps, default=0) + 1):
            model(image if step % 2 else image.flip(0, 3))
            found[f"ema_hit_after_{step}"] = hits.average.clone()
            found[f"usages_after_{step}"] = 100 * hits.usage(vectors)
    model.eval()
    return found


class _Recorded(SeededNoise):
    """Gumbel draws of a recorded run, (B, L, V)."""

    def __init__(self, gumbel: Tensor) -> None:
        super().__init__(range(gumbel.shape[0]))
        self.recorded = gumbel

    def gumbel(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return the recorded draws of positions (n,)."""
        return self.recorded[:, positions]


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _ours(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return var.generator_weights(_part(weights, "var_wo_ddp."))


def _generator(fixture: Fixture) -> dict[str, Tensor]:
    settings, theirs = fixture.config["VQVAE"], fixture.config["VAR"]
    tokenizer = Imported(
        var_vqvae.tokenizer_config(settings),
        var_vqvae.tokenizer_weights(_part(fixture.weights, "vae_local.")),
        fixture.name,
    ).build()
    assert isinstance(tokenizer, MultiScaleTokenizer)
    config = var.generator_config(
        theirs, vocab_size=settings["vocab_size"], code_dim=settings["z_channels"]
    )
    model = Imported(config, _ours(fixture.weights), fixture.name).build()
    assert isinstance(model, VAR)
    model.bind(tokenizer)
    label, drop_B = fixture["label"], None
    if "drop_uniform" in fixture.io:
        drop_B = fixture["drop_uniform"] < theirs.get("cond_drop_rate", 0.1)
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        given = "image" not in fixture.io
        ids_BL = fixture["gt_tokens"] if given else tokenizer.encode(fixture["image"])
        cond, dropped = model.conditioner(label), model.conditioner(label, drop_B=drop_B)
        found["gt_tokens"] = ids_BL
        found["var_input"] = tokenizer.quantizer.next_scale_inputs(ids_BL)
        found["logits_cond"] = model.score(ids_BL, cond)
        found["logits_null"] = model.score(ids_BL, model.conditioner.null(cond))
        found["logits_dropped"] = model.score(ids_BL, dropped)
        loss = model.loss(ids_BL, dropped)
        found["loss_per_token"], found["loss"] = loss.nll, loss.loss.reshape(1)
        if fixture.wants("loss_smooth"):
            with _smoothed(model, fixture):
                found["loss_smooth"] = model.loss(ids_BL, dropped).loss.reshape(1)
        if any(name.startswith(("greedy", "smooth")) for name in fixture.expected):
            found |= _draws(fixture, tokenizer, model)
    found |= {
        name: torch.softmax(
            Filters(
                top_k=int(fixture.number(name, "top_k", 0)),
                top_p=fixture.number(name, "top_p", 1.0),
                top_p_from_below=True,
            )(fixture["filter_logits"]),
            dim=-1,
        )
        for name in fixture.expected
        if name.startswith("filter_prob")
    }

    def training(name: str, ours: Mapping[str, Tensor]) -> Tensor:
        rows = _part(ours, "conditioner.")
        bound = torch.func.functional_call(model.conditioner, rows, (label,), {"drop_B": drop_B})
        with _smoothed(model, fixture) if name == "loss_smooth" else nullcontext():
            return Bound(model).under(ours, "loss", ids_BL, bound).loss

    return found | fixture.gradients(training, _ours)


@contextmanager
def _smoothed(model: VAR, fixture: Fixture) -> Iterator[None]:
    model.label_smoothing = fixture.number("loss_smooth", "label smoothing", 0.1)
    yield
    model.label_smoothing = 0.0


def _draws(fixture: Fixture, tokenizer: MultiScaleTokenizer, model: VAR) -> dict[str, Tensor]:
    """Repeat the recorded generations, greedy and soft."""
    found: dict[str, Tensor] = {}

    def draw(name: str, rows: int, decoder: Decoder, **options: Any) -> DecodeResult:
        # A run's settings stand with one of its tensors, or else in the procedure.
        run = "smooth" if name.startswith("smooth") else "greedy"
        sources = [name, *(n for n in fixture.io if n.startswith(run + "_"))]
        texts = [fixture.description(n) for n in sources] + [fixture.card.get("procedure", "")]
        null = "label_B=-1" in texts[0]
        label = torch.full((rows,), model.conditioner.num_classes) if null else fixture["label"]
        filters = {"temperature": 0.0}
        if run == "smooth":
            filters = {"top_k": int(_read(texts, "top_k", 0)), "top_p": _read(texts, "top_p", 1.0)}
        return decoder(
            model,
            model.conditioner(label[:rows]),
            SamplingContext(
                guidance=Guidance(1 + _read(texts, "cfg", 0.0), schedule="linear", inclusive=True),
                filters=Filters(**filters, top_p_from_below=True),
                **options,
            ),
        )

    steps: list[Tensor] = []
    rows = fixture["label"].shape[0]
    plain = SeededNoise(range(rows))
    result = draw(
        "greedy_image",
        rows,
        Sequential(),
        noise=plain,
        observer=lambda positions, codes, params: steps.append(params),
    )
    found["greedy_logits"] = torch.cat(steps, dim=1)
    found["greedy_fhat"] = tokenizer.quantizer.maps(result.codes)[-1]
    found["greedy_image"] = _shown(tokenizer.decode(result.codes))
    parts = result.codes.split([s.length for s in model.spec.segments], dim=1)
    found |= {f"greedy_idx_{k}": part for k, part in enumerate(parts)}
    for name in fixture.expected:
        if re.fullmatch(r"greedy_\w*tokens", name):
            count = fixture[name].shape[0]
            found[name] = draw(name, count, Sequential(), noise=SeededNoise(range(count))).codes
    if "smooth_gumbel" in fixture.io:
        gumbel = fixture["smooth_gumbel"]
        soft = draw("smooth_image", gumbel.shape[0], SmoothScales(), noise=_Recorded(gumbel))
        assert soft.latents is not None
        found["smooth_fhat"] = soft.latents.permute(0, 3, 1, 2)
        found["smooth_image"] = _shown(tokenizer.decode_latents(soft.latents))
    return found


def _read(texts: list[str], option: str, default: float) -> float:
    for text in texts:
        match = re.search(rf"\b{option}[ =]+(\d+\.?\d*)", text)
        if match:
            return float(match[1].rstrip("."))
    return default


def _shown(images: Tensor) -> Tensor:
    """Return images in [0, 1]."""
    return (images.clamp(-1, 1) + 1) / 2
