"""KL-16 (LTH14/mar, MIT): the autoencoder of MAR, xAR, Hi-MAR and TokenBridge.

Its file `vae.py` descends from the latent diffusion code, so the same keys name VA-VAE and the f8
autoencoders of Stable Diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.interop.base import Imported, Rule, StateDict, count, merge, rename, unwrap

SOURCE = "mar_klvae"

WRAPPERS = ("model", "state_dict")
SCALE = 0.2325  # 1 / std of ImageNet latents; the mean stays


def rules(levels: int) -> list[Rule]:
    """Return the rename rules; their `up.0` is the highest resolution, our first level the lowest.

    Args:
        levels: resolutions of the network.
    """
    found: list[Rule] = [
        (r"(encoder|decoder)\.(conv_in|conv_out|norm_out)\.(.+)", r"\1.\2.\3"),
        (r"(quant_conv|post_quant_conv)\.(.+)", r"\1.\2"),
    ]
    for part in ("encoder", "decoder"):
        for block, index in (("block_1", 0), ("attn_1", 1), ("block_2", 2)):
            found += _block(rf"{part}\.mid\.{block}", f"{part}.middle.{index}", 0)
        for i in range(levels):
            theirs = rf"{part}\.down\.{i}" if part == "encoder" else rf"{part}\.up\.{i}"
            ours = f"{part}.levels.{i if part == 'encoder' else levels - 1 - i}"
            found += _block(rf"{theirs}\.block\.(\d+)", rf"{ours}.blocks.\1", 1)
            found += _block(rf"{theirs}\.attn\.(\d+)", rf"{ours}.attentions.\1", 1)
            found.append((rf"{theirs}\.(?:down|up)sample\.conv\.(.+)", rf"{ours}.resample.conv.\1"))
    return found


def _block(theirs: str, ours: str, groups: int) -> list[Rule]:
    """Return the rules of one residual or attention block; `groups` are already captured."""
    tail = rf"\{groups + 1}"
    return [
        (rf"{theirs}\.nin_shortcut\.(.+)", rf"{ours}.shortcut.{tail}"),
        (rf"{theirs}\.proj_out\.(.+)", rf"{ours}.out.{tail}"),
        (rf"{theirs}\.(.+)", rf"{ours}.{tail}"),
    ]


def tokenizer_weights(
    weights: Mapping[str, Tensor],
    *,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    source: str = "KL autoencoder",
) -> StateDict:
    """Translate an `AutoencoderKL` state dict.

    Args:
        weights: under the reference's keys.
        mean: mean of the latents, any shape with one number or one a channel; 0 when None.
        std: their standard deviation; 1 / 0.2325 when None.
        source: for messages.
    """
    levels = count(weights, r"encoder\.down\.(\d+)\..*")
    found = merge(rename(weights, rules(levels), source=source), ("q", "k", "v"), "qkv")
    like = weights["post_quant_conv.weight"]
    dim = like.shape[1]
    zero, one = like.new_zeros(1), like.new_ones(1)
    mean = zero if mean is None else mean
    std = one / SCALE if std is None else std
    return found | {
        "quantizer.mean": mean.detach().flatten().float().expand(dim).clone(),
        "quantizer.std": std.detach().flatten().float().expand(dim).clone(),
        "quantizer.batches": zero.detach().long().reshape(()),
    }


def tokenizer_config(config: Mapping[str, Any], *, image_size: int | list[int]) -> dict[str, Any]:
    """Translate the arguments of `AutoencoderKL` and of its `Encoder` and `Decoder`.

    What the class hard-codes (width 128, two blocks, attention at nominal resolution 16 in the
    encoder only) is the default.
    """
    whole = config.get("AutoencoderKL", {})
    shared = {
        "ch": 128,
        "num_res_blocks": 2,
        "resolution": 256,
        "attn_resolutions": (),
        "dropout": 0.0,
        "resamp_with_conv": True,
        "in_channels": 3,
        "out_ch": 3,
        "ch_mult": whole.get("ch_mult", (1, 1, 2, 2, 4)),
        "z_channels": whole.get("embed_dim", 16),
    }
    encoder = shared | {"attn_resolutions": (16,)} | dict(config.get("Encoder", {}))
    decoder = shared | dict(config.get("Decoder", {}))
    if decoder.get("give_pre_end"):
        raise UserError("give_pre_end returns features, not images; leave it false.")
    variational = whole.get("use_variational", True)
    scale = config.get("scaling_factor", SCALE)
    return {
        "_target_": "argen.tokenizers.kl.KLTokenizer",
        "image_size": image_size,
        "encoder": {
            "_target_": "argen.tokenizers.cnn.Encoder",
            "channels": encoder["ch"],
            "multipliers": list(encoder["ch_mult"]),
            "blocks": encoder["num_res_blocks"],
            "in_channels": encoder["in_channels"],
            "out_channels": encoder["z_channels"] * (2 if encoder.get("double_z", True) else 1),
            "attention_levels": attention_levels(encoder),
            "downsample": "conv_asymmetric" if encoder["resamp_with_conv"] else "average",
            "dropout": encoder["dropout"],
        },
        "decoder": {
            "_target_": "argen.tokenizers.cnn.Decoder",
            "channels": decoder["ch"],
            "multipliers": list(decoder["ch_mult"]),
            "blocks": decoder["num_res_blocks"] + 1,
            "in_channels": decoder["z_channels"],
            "out_channels": decoder["out_ch"],
            "attention_levels": attention_levels(decoder),
            "upsample": "nearest" if decoder["resamp_with_conv"] else "repeat",
            "dropout": decoder["dropout"],
        },
        "quantizer": {
            "_target_": "argen.tokenizers.quantizers.gaussian.Gaussian",
            "dim": whole.get("embed_dim", 16),
            "std": 1.0 / scale,
            "variational": variational,
        },
    }


def attention_levels(config: Mapping[str, Any]) -> list[int]:
    """Return the levels whose nominal resolution is one of `attn_resolutions`."""
    wanted = set(config["attn_resolutions"])
    levels = range(len(config["ch_mult"]))
    return [level for level in levels if config["resolution"] // 2**level in wanted]


def config_of(
    weights: Mapping[str, Tensor], *, image_size: int, source: str, scale: float = SCALE
) -> dict[str, Any]:
    """Read the whole configuration off a state dict; every width and attention block shows."""
    if (
        "post_quant_conv.weight" not in weights
        or "encoder.down.0.block.0.conv1.weight" not in weights
    ):
        raise CheckpointError(
            f"{source} is not a KL autoencoder: no post_quant_conv or encoder.down."
        )
    channels = weights["encoder.conv_in.weight"].shape[0]
    levels = count(weights, r"encoder\.down\.(\d+)\..*")
    parts = {}
    for part, side in (("encoder", "down"), ("decoder", "up")):
        widths = [
            weights[f"{part}.{side}.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)
        ]
        found = [i for i in range(levels) if f"{part}.{side}.{i}.attn.0.norm.weight" in weights]
        parts[part] = {
            "ch": channels,
            "ch_mult": [width // channels for width in widths],
            "num_res_blocks": count(weights, rf"{part}\.{side}\.0\.block\.(\d+)\..*")
            - int(part == "decoder"),
            "resolution": 2**levels,
            "attn_resolutions": [2 ** (levels - i) for i in found],
            "z_channels": weights["decoder.conv_in.weight"].shape[1],
            "in_channels": weights["encoder.conv_in.weight"].shape[1],
            "out_ch": weights["decoder.conv_out.weight"].shape[0],
            "resamp_with_conv": f"{part}.{side}.{levels - 1 if side == 'up' else 0}."
            f"{side}sample.conv.weight" in weights,
        }
    double = weights["encoder.conv_out.weight"].shape[0] == 2 * parts["encoder"]["z_channels"]
    dim = weights["post_quant_conv.weight"].shape[1]
    reference = {
        "AutoencoderKL": {
            "embed_dim": dim,
            "use_variational": weights["quant_conv.weight"].shape[0] == 2 * dim,
        },
        "Encoder": parts["encoder"] | {"double_z": double},
        "Decoder": parts["decoder"],
        "scaling_factor": scale,
    }
    return tokenizer_config(reference, image_size=image_size)


def import_tokenizer(
    checkpoint: Any,
    *,
    source: str,
    image_size: int = 256,
    scale: float = SCALE,
    keep: Sequence[str] = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv."),
) -> Imported:
    """Import `kl16.ckpt`, or an f8 autoencoder of latent diffusion with its own scale.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images; any that the network's factor divides.
        scale: factor of the latents, 1 / std: 0.2325 for KL-16, 0.18215 for Stable Diffusion.
        keep: prefixes of the autoencoder's own keys; a training checkpoint also holds losses.
    """
    weights = unwrap(checkpoint, keys=WRAPPERS, source=source)
    weights = {k.removeprefix("first_stage_model."): v for k, v in weights.items()}
    weights = {k: v for k, v in weights.items() if k.startswith(tuple(keep))}
    config = config_of(weights, image_size=image_size, source=source, scale=scale)
    std = weights["post_quant_conv.weight"].new_tensor([1.0 / scale])
    return Imported(config, tokenizer_weights(weights, std=std, source=source), source)
