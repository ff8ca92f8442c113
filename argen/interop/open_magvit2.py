"""Open-MAGVIT2 (TencentARC/SEED-Voken, Apache-2.0, arXiv 2409.04410): the LFQ tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.interop.base import Imported, Rule, StateDict, count, rename, unwrap
from argen.interop.open_magvit2_ar import import_generator as import_generator
from argen.interop.open_magvit2_ar import sub_token_bits
from argen.interop.taming.tokenizer import ema_weights, named_copy

SOURCE = "open_magvit2"

WRAPPERS = ("state_dict", "model")

_PART = r"(encoder|decoder)"
_BLOCK = r"(norm1|norm2|conv1|conv2)\.(weight|bias)"
_LEVEL = rf"{_PART}\.(?:down|up)\.(\d+)"

CNN_RULES: list[Rule] = [
    (rf"{_PART}\.(conv_in|conv_out|norm_out)\.(weight|bias)", r"\1.\2.\3"),
    (rf"{_LEVEL}\.block\.(\d+)\.{_BLOCK}", r"\1.levels.\2.blocks.\3.\4.\5"),
    (rf"{_LEVEL}\.block\.(\d+)\.nin_shortcut\.(.+)", r"\1.levels.\2.blocks.\3.shortcut.\4"),
    (r"encoder\.down\.(\d+)\.downsample\.(weight|bias)", r"encoder.levels.\1.resample.conv.\2"),
    (r"decoder\.up\.(\d+)\.upsample\.conv1\.(.+)", r"decoder.levels.\1.resample.conv.\2"),
    (rf"{_PART}\.mid_block\.(\d+)\.{_BLOCK}", r"\1.middle.\2.\3.\4"),
    (r"decoder\.adaptive\.(\d+)\.gamma\.(weight|bias)", r"decoder.adaptive.\1.scale.\2"),
    (r"decoder\.adaptive\.(\d+)\.beta\.(weight|bias)", r"decoder.adaptive.\1.shift.\2"),
    # Training losses, averaged copies (read apart), and an unused palette.
    (r"(loss|model_ema)\..+", None),
    (r"colorize", None),
]


def tokenizer_weights(
    weights: Mapping[str, Tensor], *, source: str = "Open-MAGVIT2", ema: bool = False
) -> StateDict:
    """Translate the state dict of a `VQModel`, or its averaged copies.

    Raises:
        CheckpointError: naming keys that are unknown, or have no copy where copies are asked for.
    """
    if ema:
        own = [k for k in weights if k.startswith(("encoder.", "decoder."))]
        lost = [k for k in own if f"model_ema.{k.replace('.', '')}" not in weights]
        if lost:
            raise CheckpointError(
                f"{source} holds no averaged copy of {len(lost)} weights ({', '.join(lost[:3])}); "
                "use ema=false."
            )
    renamed = rename(ema_weights(weights) if ema else weights, CNN_RULES, source=source)
    depth = 1 + max(int(m[1]) for k in renamed if (m := re.match(r"decoder\.levels\.(\d+)", k)))
    # Decoder levels are numbered from the highest resolution; ours in the order they run.
    return {
        re.sub(
            r"^decoder\.(levels|adaptive)\.(\d+)",
            lambda m: f"decoder.{m[1]}.{depth - 1 - int(m[2])}",
            key,
        ): value
        for key, value in renamed.items()
    }


def network_config(config: Mapping[str, Any], *, generative: bool = False) -> dict[str, Any]:
    """Translate `ddconfig` into an encoder and a decoder; `resolution` has no effect there."""
    network = config["ddconfig"]
    shared = {
        "channels": network["ch"],
        "multipliers": list(network["ch_mult"]),
        "blocks": network["num_res_blocks"],
        "middle_attention": False,
        "middle_blocks": network["num_res_blocks"],
        "bias": False,
    }
    decoder = "generative.GenerativeDecoder" if generative else "cnn.Decoder"
    return {
        "encoder": {
            "_target_": "argen.tokenizers.cnn.Encoder",
            **shared,
            "in_channels": network.get("in_channels", 3),
            "out_channels": network["z_channels"],
            "downsample": "conv",
            "out_kernel": 1,
        },
        "decoder": {
            "_target_": f"argen.tokenizers.{decoder}",
            **shared,
            "in_channels": network["z_channels"],
            "out_channels": network.get("out_ch", 3),
            "upsample": "depth_to_space",
            "adaptive_norm": True,
        },
    }


def tokenizer_config(
    config: Mapping[str, Any], *, image_size: int | list[int], groups: int = 1
) -> dict[str, Any]:
    """Translate the constructor arguments of `VQModel`.

    Args:
        config: with `ddconfig`, `n_embed`, `embed_dim` and optionally `token_factorization`.
        image_size: side, or (H, W), of the images.
        groups: groups of bits in the entropies (WeTok).
    """
    bits = config["ddconfig"]["z_channels"]
    if config.get("embed_dim", bits) != bits:
        raise UserError(f"embed_dim {config['embed_dim']} must equal z_channels {bits}.")
    if config["n_embed"] != 2 ** (bits // groups):
        raise UserError(
            f"n_embed {config['n_embed']} is not 2^{bits // groups}, the codes of {bits} bits in "
            f"{groups} group(s)."
        )
    factorised = config.get("token_factorization", False)
    return {
        "_target_": "argen.tokenizers.cnn.CNNTokenizer",
        "image_size": image_size,
        "projection": False,
        **network_config(config, generative=config.get("gan_decoder", False)),
        "quantizer": {
            "_target_": "argen.tokenizers.quantizers.lfq.LFQ",
            "bits": bits,
            "groups": groups,
            "split": list(config.get("factorized_bits", (9, 9))) if factorised else None,
        },
    }


def loss_weights(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the weights of the two entropies within the quantiser's loss."""
    return {
        "sample_entropy": config.get("sample_minimization_weight", 1.0),
        "batch_entropy": -config.get("batch_maximization_weight", 1.0),
    }


def import_tokenizer(
    checkpoint: Any,
    *,
    source: str,
    image_size: int = 256,
    ema: bool | None = None,
    split: list[int] | None = None,
) -> Imported:
    """Import a released `.ckpt`; every size is read off the weights.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images.
        ema: take the averaged copies; by default where the file has any, as the released
            evaluation does. A generator's file holds the plain weights it was trained with.
        split: bits of each sub-token, [6, 12] for the released generators; read off a generator's
            file when None.
    """
    split = split or sub_token_bits(checkpoint)
    weights, ema = read(checkpoint, source=source, ema=ema)
    config = read_config(weights)
    config |= {"token_factorization": split is not None, "factorized_bits": split}
    return Imported(
        config=tokenizer_config(config, image_size=image_size),
        weights=tokenizer_weights(weights, source=source, ema=ema),
        source=source,
        copy=named_copy(weights, ema=ema),
    )


def read(checkpoint: Any, *, source: str, ema: bool | None) -> tuple[StateDict, bool]:
    """Return a tokenizer's state dict out of a checkpoint, and whether to use averaged copies."""
    weights = unwrap(checkpoint, keys=WRAPPERS, source=source)
    prefix = "first_stage_model."
    if "encoder.conv_in.weight" not in weights:
        weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    if "encoder.mid_block.0.conv1.weight" not in weights:
        raise CheckpointError(f"{source} is not an Open-MAGVIT2 or WeTok tokenizer: no mid_block.")
    averaged = any(k.startswith("model_ema.encoder") for k in weights)
    return weights, averaged if ema is None else ema


def read_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the constructor arguments off a state dict, for one group of bits."""
    base = weights["encoder.conv_in.weight"].shape[0]
    depth = count(weights, r"encoder\.down\.(\d+)\..*")
    widths = [weights[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(depth)]
    bits = weights["encoder.conv_out.weight"].shape[0]
    return {
        "ddconfig": {
            "ch": base,
            "ch_mult": [width // base for width in widths],
            "num_res_blocks": count(weights, r"encoder\.down\.0\.block\.(\d+)\..*"),
            "z_channels": bits,
            "in_channels": weights["encoder.conv_in.weight"].shape[1],
            "out_ch": weights["decoder.conv_out.weight"].shape[0],
        },
        "n_embed": 2**bits,
        "embed_dim": bits,
        "gan_decoder": weights["decoder.conv_in.weight"].shape[1] == 2 * bits,
    }
