"""xAR (OliverRensu/xAR, no licence, arXiv 2502.20388): next-cell prediction by flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.interop.base import Imported, Rule, StateDict, copy_in, count, rename, unwrap
from argen.interop.mar_klvae import import_tokenizer as import_tokenizer
from argen.spec import CodeSpec, Segment

SOURCE = "xar"

WRAPPERS = ("model_ema", "model")  # training checkpoints; released files are bare state dicts

# Heads are not visible in the weights; the width tells the published sizes apart.
HEADS = {768: 12, 1024: 16, 1280: 16}

# Their six vectors stand as gates, scales, shifts; ours as shift, scale, gate of each half.
MODULATION = (4, 2, 0, 5, 3, 1)

RULES: list[Rule] = [
    (r"class_emb\.weight", "conditioner.table.weight"),
    (r"time_embed\.mlp\.0\.(.+)", r"network.time.fc1.\1"),
    (r"time_embed\.mlp\.2\.(.+)", r"network.time.fc2.\1"),
    (r"z_proj\.(.+)", r"network.input.\1"),
    (r"z_proj_ln\.(.+)", r"network.input_norm.\1"),
    (r"encoder_pos_embed_learned", "network.first_positions"),
    (r"decoder_pos_embed_learned", "network.second_positions"),
    (r"encoder_norm\.(.+)", r"network.first_norm.\1"),
    (r"decoder_norm\.(.+)", r"network.second_norm.\1"),
    (r"decoder_embed\.(.+)", r"network.second_input.\1"),
    (r"pred\.(.+)", r"network.out.\1"),
    *[
        rule
        for theirs, ours in (("encoder", "first"), ("decoder", "second"))
        for rule in (
            (
                rf"{theirs}_blocks\.(\d+)\.attn\.qkv\.(.+)",
                rf"network.{ours}_blocks.\1.attention.qkv.\2",
            ),
            (
                rf"{theirs}_blocks\.(\d+)\.attn\.proj\.(.+)",
                rf"network.{ours}_blocks.\1.attention.out.\2",
            ),
            (
                rf"{theirs}_blocks\.(\d+)\.mlp\.fc1_g\.(.+)",
                rf"network.{ours}_blocks.\1.ffn.gate.\2",
            ),
            (rf"{theirs}_blocks\.(\d+)\.mlp\.fc1_x\.(.+)", rf"network.{ours}_blocks.\1.ffn.up.\2"),
            (rf"{theirs}_blocks\.(\d+)\.mlp\.fc2\.(.+)", rf"network.{ours}_blocks.\1.ffn.out.\2"),
            (
                rf"{theirs}_blocks\.(\d+)\.ada_lin\.1\.(.+)",
                rf"network.{ours}_blocks.\1.modulation.proj.\2",
            ),
        )
    ],
    # Buffers that follow from the sizes.
    (r"mask", None),
    (r".+\.rope\.freqs(_cos|_sin)?", None),
]


def generator_weights(weights: Mapping[str, Tensor], *, source: str = "xAR") -> StateDict:
    """Translate an `xAR` state dict."""
    renamed = rename(weights, RULES, source=source)
    for key, value in renamed.items():
        if ".modulation.proj." in key:
            parts = value.chunk(6)
            renamed[key] = torch.cat([parts[i] for i in MODULATION])
    return renamed


def generator_config(
    config: Mapping[str, Any], *, sampler: str = "euler_maruyama", steps: int = 50
) -> dict[str, Any]:
    """Translate the arguments of `xAR`.

    Args:
        config: its arguments.
        sampler: `euler_maruyama`, what its `sample_tokens` runs, or `euler`.
        steps: its `num_steps`.
    """
    patch = config.get("patch_size", 1)
    side = config.get("img_size", 256) // config.get("vae_stride", 16) // patch
    across = round(config.get("clusters", 4) ** 0.5)
    segment = Segment((side, side), dim=config.get("vae_embed_dim", 16) * patch**2)
    dim = config.get("encoder_embed_dim", 1024)
    if config.get("decoder_embed_dim", dim) != dim:
        raise UserError("xAR's two stacks share one condition vector and must be equally wide.")
    return {
        "_target_": "argen.generators.xar.XAR",
        "spec": CodeSpec("continuous", (segment,)).to_dict(),
        "conditioner": {
            "_target_": "argen.generators.conditioning.ClassConditioner",
            "num_classes": config.get("class_num", 1000),
            "dim": dim,
            "drop_rate": config.get("label_drop_prob", 0.1),
            "null_row": True,
        },
        "dim": dim,
        "depth": config.get("encoder_depth", 16),
        "heads": config.get("encoder_num_heads", 16),
        "second_depth": config.get("decoder_depth", 16),
        "second_heads": config.get("decoder_num_heads", 16),
        "mlp_ratio": config.get("mlp_ratio", 4.0),
        "entity": "cell",
        "entity_size": side // across,
        "sampler": sampler,
        "sampling_steps": steps,
        "dropout": config.get("proj_dropout", 0.1),
        "attention_dropout": config.get("attn_dropout", 0.1),
    }


def import_generator(
    checkpoint: Any, *, source: str, heads: int | None = None, copy: str | None = None
) -> Imported:
    """Import `xAR-B.pth`, `xAR-L.pth`, `xAR-H.pth` or a training checkpoint.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        heads: attention heads, where the width is not one of the published ones.
        copy: `model_ema` or `model`, where a file holds both; the average by default, as in the
            published evaluation.
    """
    copy, keys = copy_in(checkpoint, keys=WRAPPERS, source=source, wanted=copy)
    weights = unwrap(checkpoint, keys=keys, source=source)
    if "encoder_blocks.0.ada_lin.1.weight" not in weights or "pred.weight" not in weights:
        raise CheckpointError(f"{source} is not an xAR generator: no ada_lin or pred.")
    rows, dim = weights["class_emb.weight"].shape
    length = weights["encoder_pos_embed_learned"].shape[1]
    side = round(length**0.5)
    if side * side != length:
        raise CheckpointError(f"{source} models {length} positions, which is not a square grid.")
    if heads is None and dim not in HEADS:
        raise UserError(f"{source} has width {dim}, not a published size; pass heads=N.")
    hidden = weights["encoder_blocks.0.mlp.fc1_g.weight"].shape[0]
    config = {
        "img_size": side,
        "vae_stride": 1,
        "vae_embed_dim": weights["pred.weight"].shape[0],
        "class_num": rows - 1,
        "encoder_embed_dim": dim,
        "encoder_depth": count(weights, r"encoder_blocks\.(\d+)\..*"),
        "encoder_num_heads": heads or HEADS[dim],
        "decoder_embed_dim": dim,
        "decoder_depth": count(weights, r"decoder_blocks\.(\d+)\..*"),
        "decoder_num_heads": heads or HEADS[dim],
        # The hidden width is cut to a whole number, so its middle is aimed at.
        "mlp_ratio": (hidden + 0.5) * 3 / 2 / dim,
        "clusters": _clusters(weights, length),
    }
    return Imported(
        generator_config(config), generator_weights(weights, source=source), source, copy
    )


def _clusters(weights: Mapping[str, Tensor], length: int) -> int:
    """Return the number of cells; the mask shows how many places the first one sees."""
    if "mask" not in weights:
        return 4
    return length // int((weights["mask"].reshape(length, length)[0] == 0).sum())
