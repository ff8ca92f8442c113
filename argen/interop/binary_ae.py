"""Binary Latent Diffusion (ZeWang95/BinaryLatentDiffusion, MIT, arXiv 2304.04820): autoencoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError
from argen.interop.base import Imported, StateDict, count, merge, unwrap

SOURCE = "binary_ae"

WRAPPERS = ("state_dict", "model")

# The reference keeps each network as one flat list; what stands where shows in the key names.
KINDS = {"conv1": "block", "q": "attention", "conv": "resample"}


def _kinds(weights: Mapping[str, Tensor], part: str) -> list[str]:
    """Return what each entry of a flat list is: conv, norm, block, attention or resample."""
    kinds: dict[int, str] = {}
    for key, value in weights.items():
        match = re.match(rf"{part}\.blocks\.(\d+)\.([a-z0-9_]+)", key)
        if match is None:
            continue
        index, name = int(match[1]), match[2]
        if name in KINDS:
            kinds[index] = KINDS[name]
        elif name == "weight":
            kinds[index] = "conv" if value.ndim == 4 else "norm"
    if sorted(kinds) != list(range(len(kinds))) or len(kinds) < 7:
        raise CheckpointError(f"{part}.blocks is not the list of a binary autoencoder.")
    return [kinds[i] for i in range(len(kinds))]


def _names(kinds: list[str], part: str) -> list[str]:
    """Return our name of each entry of a flat list."""
    encoder = part == "encoder"
    names = {len(kinds) - 2: "norm_out", len(kinds) - 1: "conv_out"}
    start = kinds.index("conv")
    names[start] = "conv_in"
    if start:
        names[0] = "norm_in"
    middle = len(kinds) - 5 if encoder else start + 1
    names |= {middle + i: f"middle.{i}" for i in range(3)}
    level, block = 0, -1
    for i, kind in enumerate(kinds):
        if i in names:
            continue
        if kind == "block":
            block += 1
            names[i] = f"levels.{level}.blocks.{block}"
        elif kind == "attention":
            names[i] = f"levels.{level}.attentions.{block}"
        else:
            names[i] = f"levels.{level}.resample"
            level, block = level + 1, -1
    return [names[i] for i in range(len(kinds))]


def tokenizer_weights(
    weights: Mapping[str, Tensor], *, source: str = "binary autoencoder"
) -> StateDict:
    """Translate a `BinaryAutoEncoder` state dict."""
    parts = {"encoder": "encoder", "generator": "decoder"}
    names = {part: _names(_kinds(weights, part), part) for part in parts}
    leaves = {"conv_out": "shortcut", "proj_out": "out"}
    found: StateDict = {}
    unknown = []
    for key, value in weights.items():
        match = re.fullmatch(r"(encoder|generator)\.blocks\.(\d+)\.(.+)", key)
        if match:
            part, name = match[1], names[match[1]][int(match[2])]
            leaf, _, rest = match[3].partition(".")
            if leaf == "conv_out" and _square(weights[f"{key.rpartition('.')[0]}.weight"]):
                continue  # Saved with every block, used where the widths differ.
            leaf = leaves.get(leaf, leaf)
            found[f"{parts[part]}.{name}.{leaf}" + (f".{rest}" if rest else "")] = value
        elif key.startswith("quantize.proj.0."):
            found[f"quantizer.proj.{key.rpartition('.')[2]}"] = (
                value.flatten(1) if value.ndim == 4 else value
            )
        elif key == "quantize.embed.weight":
            found["quantizer.embed.weight"] = value
        elif not key.startswith("generator.logsigma."):
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"{source}: {len(unknown)} unknown keys ({', '.join(unknown[:3])}); it is a checkpoint "
            "of another model."
        )
    return merge(found, ("q", "k", "v"), "qkv")


def tokenizer_config(config: Mapping[str, Any], *, image_size: int | list[int]) -> dict[str, Any]:
    """Translate the settings `H` of a `BinaryAutoEncoder`.

    Attention goes by the nominal resolution `img_size`, halved level by level.
    """
    depth, side = len(config["ch_mult"]), config["img_size"]
    inward = [side // 2**i for i in range(depth)]
    outward = [side // 2 ** (depth - 1) * 2 ** (depth - 1 - i) for i in range(depth)]
    wanted, dim = set(config["attn_resolutions"]), config["emb_dim"]
    shared = {
        "channels": config["nf"],
        "multipliers": list(config["ch_mult"]),
        "out_activation": False,
    }
    return {
        "_target_": "argen.tokenizers.cnn.CNNTokenizer",
        "image_size": image_size,
        "projection": False,
        "encoder": {
            "_target_": "argen.tokenizers.cnn.Encoder",
            **shared,
            "blocks": config["res_blocks"],
            "in_channels": config.get("n_channels", 3),
            "out_channels": dim,
            "attention_levels": [i for i, s in enumerate(inward) if s in wanted],
        },
        "decoder": {
            "_target_": "argen.tokenizers.cnn.Decoder",
            **shared,
            "blocks": int(config["res_blocks"] * config.get("gen_mul", 1.0)),
            "in_channels": dim,
            "out_channels": config.get("n_channels", 3),
            "attention_levels": [i for i, s in enumerate(outward) if s in wanted],
            "in_norm": config.get("norm_first", False),
        },
        "quantizer": {
            "_target_": "argen.tokenizers.quantizers.bernoulli.Bernoulli",
            "bits": config["codebook_size"],
            "dim": dim,
            "signed": config.get("use_tanh", False),
            "deterministic": config.get("deterministic", False),
        },
    }


def import_tokenizer(
    checkpoint: Any, *, source: str, image_size: int = 256, signed: bool = False
) -> Imported:
    """Import a released `binaryae_ema_*.th`; the layout is read off the weights.

    Args:
        checkpoint: what the file holds: the whole GAN, its autoencoder under `ae.`.
        source: the file, for messages.
        image_size: side of the images.
        signed: whether the model was trained with `use_tanh`, which the weights do not show.
    """
    weights = unwrap(checkpoint, keys=WRAPPERS, source=source)
    if any(k.startswith("ae.") for k in weights):
        weights = {k.removeprefix("ae."): v for k, v in weights.items() if k.startswith("ae.")}
    if "quantize.embed.weight" not in weights:
        raise CheckpointError(f"{source} is not a binary autoencoder: no quantize.embed.weight.")
    bits, dim = weights["quantize.embed.weight"].shape
    ours = tokenizer_weights(weights, source=source)
    base = ours["encoder.conv_in.weight"].shape[0]
    depth = count(ours, r"encoder\.levels\.(\d+)\..*")
    attended = [i for i in range(depth) if f"encoder.levels.{i}.attentions.0.qkv.weight" in ours]
    encoder_blocks = count(ours, r"encoder\.levels\.0\.blocks\.(\d+)\..*")
    config = {
        "nf": base,
        "ch_mult": [
            ours[f"encoder.levels.{i}.blocks.0.conv2.weight"].shape[0] // base for i in range(depth)
        ],
        "res_blocks": encoder_blocks,
        "gen_mul": count(ours, r"decoder\.levels\.0\.blocks\.(\d+)\..*") / encoder_blocks,
        "codebook_size": bits,
        "emb_dim": dim,
        "n_channels": ours["encoder.conv_in.weight"].shape[1],
        # Levels stand for resolutions: 2^(depth - 1) at level 0, 1 at the last.
        "img_size": 2 ** (depth - 1),
        "attn_resolutions": [2 ** (depth - 1 - i) for i in attended],
        "norm_first": "decoder.norm_in.weight" in ours,
        "use_tanh": signed,
    }
    return Imported(tokenizer_config(config, image_size=image_size), ours, source)


def _square(kernel: Tensor) -> bool:
    return kernel.shape[0] == kernel.shape[1]
