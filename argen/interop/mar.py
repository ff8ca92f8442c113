"""MAR (LTH14/mar, MIT, arXiv 2406.11838): the masked generator with its diffusion head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.interop.base import Imported, Rule, StateDict, copy_in, count, rename, unwrap
from argen.interop.mar_klvae import import_tokenizer as import_tokenizer
from argen.spec import CodeSpec, Segment

SOURCE = "mar"

WRAPPERS = ("model_ema", "model", "state_dict")  # evaluation uses the EMA copy

# Heads are not visible in the weights; the width tells the published sizes apart.
HEADS = {768: 12, 1024: 16, 1280: 16}

HEAD_RULES: list[Rule] = [
    (r"diffloss\.net\.input_proj\.(.+)", r"head.net.input.\1"),
    (r"diffloss\.net\.cond_embed\.(.+)", r"head.net.cond.\1"),
    (r"diffloss\.net\.time_embed\.mlp\.0\.(.+)", r"head.net.time.fc1.\1"),
    (r"diffloss\.net\.time_embed\.mlp\.2\.(.+)", r"head.net.time.fc2.\1"),
    (r"diffloss\.net\.res_blocks\.(\d+)\.in_ln\.(.+)", r"head.net.blocks.\1.norm.\2"),
    (r"diffloss\.net\.res_blocks\.(\d+)\.mlp\.0\.(.+)", r"head.net.blocks.\1.fc1.\2"),
    (r"diffloss\.net\.res_blocks\.(\d+)\.mlp\.2\.(.+)", r"head.net.blocks.\1.fc2.\2"),
    (
        r"diffloss\.net\.res_blocks\.(\d+)\.adaLN_modulation\.1\.(.+)",
        r"head.net.blocks.\1.modulation.\2",
    ),
    (r"diffloss\.net\.final_layer\.linear\.(.+)", r"head.net.out.\1"),
    (r"diffloss\.net\.final_layer\.adaLN_modulation\.1\.(.+)", r"head.net.modulation.\1"),
]

RULES: list[Rule] = [
    (r"class_emb\.weight", "class_emb"),
    (r"fake_latent", "fake_latent"),
    (r"mask_token", "network.mask_token"),
    (r"encoder_pos_embed_learned", "network.encoder_positions"),
    (r"decoder_pos_embed_learned", "network.decoder_positions"),
    (r"diffusion_pos_embed_learned", "network.out_positions"),
    (r"z_proj\.(.+)", r"network.input.\1"),
    (r"z_proj_ln\.(.+)", r"network.input_norm.\1"),
    (r"(encoder_norm|decoder_norm|decoder_embed)\.(.+)", r"network.\1.\2"),
    (r"(encoder|decoder)_blocks\.(\d+)\.norm1\.(.+)", r"network.\1_blocks.\2.attention_norm.\3"),
    (r"(encoder|decoder)_blocks\.(\d+)\.attn\.qkv\.(.+)", r"network.\1_blocks.\2.attention.qkv.\3"),
    (
        r"(encoder|decoder)_blocks\.(\d+)\.attn\.proj\.(.+)",
        r"network.\1_blocks.\2.attention.out.\3",
    ),
    (r"(encoder|decoder)_blocks\.(\d+)\.norm2\.(.+)", r"network.\1_blocks.\2.ffn_norm.\3"),
    (r"(encoder|decoder)_blocks\.(\d+)\.mlp\.(fc1|fc2)\.(.+)", r"network.\1_blocks.\2.ffn.\3.\4"),
    *HEAD_RULES,
]


def generator_weights(weights: Mapping[str, Tensor], *, source: str = "MAR") -> StateDict:
    """Translate a `MAR` state dict; the null condition becomes the last row of the class table."""
    renamed = rename(weights, RULES, source=source)
    try:
        table = torch.cat((renamed.pop("class_emb"), renamed.pop("fake_latent")))
    except KeyError as error:
        raise CheckpointError(f"{source} is not a MAR generator: no {error.args[0]}.") from error
    return renamed | {"conditioner.table.weight": table}


def generator_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the arguments of `MAR`; patches of latent pixels are the tokenizer's affair."""
    patch = config.get("patch_size", 1)
    side = config["img_size"] // config.get("vae_stride", 16) // patch
    segment = Segment((side, side), dim=config.get("vae_embed_dim", 16) * patch**2)
    return {
        "_target_": "argen.generators.mar.MAR",
        "spec": CodeSpec("continuous", (segment,)).to_dict(),
        "conditioner": {
            "_target_": "argen.generators.conditioning.ClassConditioner",
            "num_classes": config.get("class_num", 1000),
            "dim": config.get("encoder_embed_dim", 1024),
            "drop_rate": config.get("label_drop_prob", 0.1),
            "null_row": True,
        },
        "dim": config.get("encoder_embed_dim", 1024),
        "depth": config.get("encoder_depth", 16),
        "heads": config.get("encoder_num_heads", 16),
        "decoder_dim": config.get("decoder_embed_dim", 1024),
        "decoder_depth": config.get("decoder_depth", 16),
        "decoder_heads": config.get("decoder_num_heads", 16),
        "mlp_ratio": config.get("mlp_ratio", 4.0),
        "buffer": config.get("buffer_size", 64),
        "norm_eps": norm_eps(config.get("norm_layer")),
        "mask_ratio_min": config.get("mask_ratio_min", 0.7),
        "head_width": config.get("diffloss_w", 1024),
        "head_depth": config.get("diffloss_d", 3),
        "sampling_steps": str(config.get("num_sampling_steps", "100")),
        "repeats": config.get("diffusion_batch_mul", 4),
        "dropout": config.get("proj_dropout", 0.1),
        "attention_dropout": config.get("attn_dropout", 0.1),
        "gradient_checkpointing": config.get("grad_checkpointing", False),
    }


def norm_eps(norm_layer: str | None) -> float:
    """Read the epsilon out of e.g. `LayerNorm(eps=1e-06)`; a plain LayerNorm has 1e-5."""
    found = re.search(r"eps\s*=\s*([\d.e+-]+)", norm_layer or "")
    return float(found.group(1)) if found else 1e-5


def import_generator(
    checkpoint: Any, *, source: str, heads: int | None = None, copy: str | None = None
) -> Imported:
    """Import a released `checkpoint-last.pth`; every width is read off the weights.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        heads: attention heads, where the width is not one of the published ones.
        copy: `model_ema` or `model`, where a file holds both; the average by default, as in the
            published evaluation.
    """
    copy, keys = copy_in(checkpoint, keys=WRAPPERS, source=source, wanted=copy)
    weights = unwrap(checkpoint, keys=keys, source=source)
    if "diffloss.net.input_proj.weight" not in weights or "fake_latent" not in weights:
        raise CheckpointError(f"{source} is not a MAR generator: no diffloss.net or fake_latent.")
    classes, dim = weights["class_emb.weight"].shape
    decoder_dim = weights["mask_token"].shape[-1]
    length = weights["diffusion_pos_embed_learned"].shape[1]
    side = round(length**0.5)
    if side * side != length:
        raise CheckpointError(f"{source} models {length} positions, which is not a square grid.")
    if heads is None and not {dim, decoder_dim} <= HEADS.keys():
        raise UserError(f"{source} has width {dim}, not a published size; pass heads=N.")
    config = {
        # One latent pixel a position; a model of larger patches sees them as wider codes.
        "img_size": side,
        "vae_stride": 1,
        "vae_embed_dim": weights["z_proj.weight"].shape[1],
        "class_num": classes,
        "encoder_embed_dim": dim,
        "encoder_depth": count(weights, r"encoder_blocks\.(\d+)\..*"),
        "encoder_num_heads": heads or HEADS[dim],
        "decoder_embed_dim": decoder_dim,
        "decoder_depth": count(weights, r"decoder_blocks\.(\d+)\..*"),
        "decoder_num_heads": heads or HEADS[decoder_dim],
        "mlp_ratio": weights["encoder_blocks.0.mlp.fc1.weight"].shape[0] / dim,
        "buffer_size": weights["encoder_pos_embed_learned"].shape[1] - length,
        "norm_layer": "LayerNorm(eps=1e-06)",  # the presets' choice; the class default is 1e-5
        "diffloss_w": weights["diffloss.net.input_proj.weight"].shape[0],
        "diffloss_d": count(weights, r"diffloss\.net\.res_blocks\.(\d+)\..*"),
    }
    return Imported(
        generator_config(config), generator_weights(weights, source=source), source, copy
    )
