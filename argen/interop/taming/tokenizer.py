"""taming-transformers (CompVis, MIT, arXiv 2012.09841): VQGAN and Gumbel tokenizers.

latent-diffusion's VQ autoencoders (CompVis, MIT, arXiv 2112.10752) are the same networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.interop.base import (
    Imported,
    Rule,
    StateDict,
    count,
    merge,
    rename,
    reverse_levels,
    unwrap,
)
from argen.interop.net2net import import_generator as import_generator

WRAPPERS = ("state_dict", "model")
BETA = 0.25

_ATTENTION = r"(norm|q|k|v)\.(weight|bias)"
_BLOCK = r"(norm1|norm2|conv1|conv2)\.(weight|bias)"

CNN_RULES: list[Rule] = [
    (r"(encoder|decoder)\.(conv_in|conv_out|norm_out)\.(weight|bias)", r"\1.\2.\3"),
    (
        rf"(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.(\d+)\.{_BLOCK}",
        r"\1.levels.\2.blocks.\3.\4.\5",
    ),
    (
        r"(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.(\d+)\.nin_shortcut\.(.+)",
        r"\1.levels.\2.blocks.\3.shortcut.\4",
    ),
    (
        rf"(encoder|decoder)\.(?:down|up)\.(\d+)\.attn\.(\d+)\.{_ATTENTION}",
        r"\1.levels.\2.attentions.\3.\4.\5",
    ),
    (
        r"(encoder|decoder)\.(?:down|up)\.(\d+)\.attn\.(\d+)\.proj_out\.(.+)",
        r"\1.levels.\2.attentions.\3.out.\4",
    ),
    (
        r"(encoder|decoder)\.(?:down|up)\.(\d+)\.(?:down|up)sample\.conv\.(.+)",
        r"\1.levels.\2.resample.conv.\3",
    ),
    (rf"(encoder|decoder)\.mid\.block_1\.{_BLOCK}", r"\1.middle.0.\2.\3"),
    (rf"(encoder|decoder)\.mid\.attn_1\.{_ATTENTION}", r"\1.middle.1.\2.\3"),
    (r"(encoder|decoder)\.mid\.attn_1\.proj_out\.(.+)", r"\1.middle.1.out.\2"),
    (rf"(encoder|decoder)\.mid\.block_2\.{_BLOCK}", r"\1.middle.2.\2.\3"),
    (r"(quant_conv|post_quant_conv)\.(weight|bias)", r"\1.\2"),
]

# The training losses, the copies that another rule reads, and a fixed palette for label maps.
DROPPED: list[Rule] = [(r"loss\..+", None), (r"model_ema\..+", None), (r"colorize", None)]


def _quantizer_rules(weights: Mapping[str, Tensor]) -> list[Rule]:
    if "quantize.embed.weight" in weights:
        return [
            (r"quantize\.embed\.weight", "quantizer.codebook.weight"),
            (r"quantize\.proj\.(weight|bias)", r"quantizer.proj.\1"),
            (r"quantize\.used", "quantizer.subset.used"),
        ]
    wrapped = "quantizer." if "quantize.used" in weights else ""
    return [
        (r"quantize\.embedding\.weight", f"quantizer.{wrapped}codebook.weight"),
        (r"quantize\.used", "quantizer.subset.used"),
    ]


def tokenizer_weights(weights: Mapping[str, Tensor], *, source: str = "VQGAN") -> StateDict:
    """Translate the state dict of a `VQModel` or `GumbelVQ`."""
    rules = [*CNN_RULES, *_quantizer_rules(weights), *DROPPED]
    renamed = merge(rename(weights, rules, source=source), ("q", "k", "v"), "qkv")
    found = reverse_levels(renamed)
    if "quantizer.proj.weight" in found:  # A 1x1 convolution.
        found["quantizer.proj.weight"] = found["quantizer.proj.weight"].flatten(1)
    return found


def tokenizer_config(
    config: Mapping[str, Any], *, image_size: int | list[int], used: int | None = None
) -> dict[str, Any]:
    """Translate the constructor arguments of `VQModel` or `GumbelVQ`.

    Args:
        config: with `ddconfig`, `n_embed`, `embed_dim`; a `GumbelVQ` has a `kl_weight` or a
            temperature schedule.
        image_size: side, or (H, W), of the images.
        used: length of the list of `remap`, whose file is not read: the list comes with the
            weights.
    """
    network = config["ddconfig"]
    if network.get("double_z", False):
        raise UserError(
            "double_z=true doubles the encoder's output for a Gaussian latent; a VQ model needs "
            "double_z=false."
        )
    depth, resolution = len(network["ch_mult"]), network["resolution"]
    convolved = network.get("resamp_with_conv", True)
    shared = {
        "channels": network["ch"],
        "multipliers": list(network["ch_mult"]),
        "dropout": network.get("dropout", 0.0),
    }
    # Attention goes by the nominal resolution: halved, rounding down, on the way in, and doubled
    # from the last one on the way out.
    lowest = resolution // 2 ** (depth - 1)
    inward, resolutions = resolution, []
    for _ in range(depth):
        resolutions.append(inward)
        inward //= 2
    outward = [lowest * 2 ** (depth - 1 - i) for i in range(depth)]
    wanted = set(network["attn_resolutions"])
    return {
        "_target_": "argen.tokenizers.cnn.CNNTokenizer",
        "image_size": image_size,
        "encoder": {
            "_target_": "argen.tokenizers.cnn.Encoder",
            **shared,
            "blocks": network["num_res_blocks"],
            "out_channels": network["z_channels"],
            "in_channels": network.get("in_channels", 3),
            "attention_levels": [i for i, side in enumerate(resolutions) if side in wanted],
            "downsample": "conv_asymmetric" if convolved else "average",
        },
        "decoder": {
            "_target_": "argen.tokenizers.cnn.Decoder",
            **shared,
            "blocks": network["num_res_blocks"] + 1,
            "in_channels": network["z_channels"],
            "out_channels": network.get("out_ch", 3),
            "attention_levels": [i for i, side in enumerate(outward) if side in wanted],
            "upsample": "nearest" if convolved else "repeat",
        },
        "quantizer": _quantizer_config(config, used),
    }


def is_gumbel(config: Mapping[str, Any]) -> bool:
    """Whether constructor arguments are those of a `GumbelVQ`."""
    return "temperature_scheduler_config" in config or "kl_weight" in config


def _quantizer_config(config: Mapping[str, Any], used: int | None) -> dict[str, Any]:
    codes, dim = config["n_embed"], config["embed_dim"]
    if is_gumbel(config):
        if dim != config["ddconfig"]["z_channels"]:
            raise UserError(
                f"A Gumbel quantiser of embed_dim {dim} behind z_channels "
                f"{config['ddconfig']['z_channels']} cannot run; they must be equal."
            )
        return {
            "_target_": "argen.tokenizers.quantizers.gumbel.Gumbel",
            "codes": codes,
            "dim": dim,
            "temperature": _temperature(config.get("temperature_scheduler_config")),
            "used": used,
        }
    quantizer = {"_target_": "argen.tokenizers.quantizers.vq.VQ", "codes": codes, "dim": dim}
    if used is None:
        return quantizer
    return {
        "_target_": "argen.tokenizers.quantizers.subset.Subset",
        "quantizer": quantizer,
        "used": used,
    }


def _temperature(config: Mapping[str, Any] | None) -> float | dict[str, Any]:
    if not config:
        return 1.0
    schedule = config["params"]
    return {
        "_target_": "argen.tokenizers.schedules.WarmupCosine",
        "start": schedule["lr_start"],
        "peak": schedule["lr_max"],
        "end": schedule["lr_min"],
        "warmup": schedule["warm_up_steps"],
        "steps": schedule["max_decay_steps"],
    }


def ema_weights(weights: Mapping[str, Tensor]) -> StateDict:
    """Put latent-diffusion's averaged copies, whose names have lost their dots, in place.

    Raises:
        CheckpointError: if the file holds none.
    """
    found = dict(weights)
    copies = {
        k.removeprefix("model_ema."): v for k, v in weights.items() if k.startswith("model_ema.")
    }
    hits = {key: copies[key.replace(".", "")] for key in found if key.replace(".", "") in copies}
    if not hits:
        raise CheckpointError("The file holds no averaged copies (model_ema.*); use ema=false.")
    return found | hits


def import_tokenizer(
    checkpoint: Any, *, source: str, image_size: int = 256, ema: bool = False
) -> Imported:
    """Import a released `.ckpt`; sizes and the place of attention are read off the weights.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images.
        ema: take the averaged copies that some latent-diffusion files hold.
    """
    weights = unwrap(checkpoint, keys=WRAPPERS, source=source)
    prefix = "first_stage_model."  # A generator's or a diffusion model's file carries it along.
    if "encoder.conv_in.weight" not in weights:
        weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    copy = named_copy(weights, ema=ema)
    if ema:
        weights = ema_weights(weights)
    return Imported(
        config=_read_config(weights, image_size=image_size, source=source),
        weights=tokenizer_weights(weights, source=source),
        source=source,
        copy=copy,
    )


def named_copy(weights: Mapping[str, Tensor], *, ema: bool) -> str:
    """Return `model_ema` or `model`, the copy taken of a file that holds both, else nothing."""
    several = any(key.startswith("model_ema.") for key in weights)
    return ("model_ema" if ema else "model") if several else ""


def _read_config(weights: StateDict, *, image_size: int, source: str) -> dict[str, Any]:
    gumbel = "quantize.embed.weight" in weights
    if not gumbel and "quantize.embedding.weight" not in weights:
        raise CheckpointError(f"{source} is not a VQGAN: it has no codebook under quantize.*.")
    codes, dim = weights[f"quantize.embed{'' if gumbel else 'ding'}.weight"].shape
    depth = count(weights, r"encoder\.down\.(\d+)\..+")
    base = weights["encoder.conv_in.weight"].shape[0]
    widths = [weights[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(depth)]
    network = {
        "ch": base,
        "ch_mult": [width // base for width in widths],
        "num_res_blocks": count(weights, r"encoder\.down\.0\.block\.(\d+)\..+"),
        "z_channels": weights["encoder.conv_out.weight"].shape[0],
        "in_channels": weights["encoder.conv_in.weight"].shape[1],
        "out_ch": weights["decoder.conv_out.weight"].shape[0],
        # Levels stand for resolutions: 2^(depth - 1) at level 0, 1 at the last.
        "resolution": 2 ** (depth - 1),
        "attn_resolutions": [
            2 ** (depth - 1 - i) for i in range(depth) if _any(weights, f"encoder.down.{i}.attn.")
        ],
        "resamp_with_conv": depth == 1 or "encoder.down.0.downsample.conv.weight" in weights,
    }
    config: dict[str, Any] = {"ddconfig": network, "n_embed": codes, "embed_dim": dim}
    if gumbel:
        config["kl_weight"] = 0.0
    used = weights.get("quantize.used")
    return tokenizer_config(config, image_size=image_size, used=None if used is None else len(used))


def _any(keys: Iterable[str], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in keys)
