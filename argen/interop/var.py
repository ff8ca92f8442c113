"""VAR (FoundationVision/VAR, MIT, arXiv 2404.02905): next-scale generator; also its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.interop.base import Imported, Rule, StateDict, count, rename, unwrap
from argen.interop.var_vqvae import import_tokenizer as import_tokenizer
from argen.interop.var_vqvae import inside
from argen.spec import CodeSpec, Segment
from argen.tokenizers.quantizers.multiscale import as_scales

SOURCE = "var"

# Our blocks order a modulation's parts shift, scale, gate of the attention, then of the
# feed-forward layer; the reference has gates, then scales, then shifts.
PARTS = torch.tensor([4, 2, 0, 5, 3, 1])

RULES: list[Rule] = [
    (r"class_emb\.weight", "conditioner.table.weight"),
    (r"pos_start", "pos_start"),
    (r"pos_1LC", "pos"),
    (r"lvl_embed\.weight", "level_embed"),
    (r"word_embed\.(.+)", r"embed.\1"),
    (r"blocks\.(\d+)\.attn\.mat_qkv\.weight", r"blocks.\1.attention.qkv.weight"),
    (r"blocks\.(\d+)\.attn\.([qv]_bias)", r"blocks.\1.attention.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.scale_mul_1H11", r"blocks.\1.attention.q_norm.log_scale"),
    (r"blocks\.(\d+)\.attn\.proj\.(.+)", r"blocks.\1.attention.out.\2"),
    (r"blocks\.(\d+)\.ffn\.(fc[12])\.(.+)", r"blocks.\1.ffn.\2.\3"),
    (r"blocks\.(\d+)\.ada_lin\.1\.(.+)", r"blocks.\1.modulation.proj.\2"),
    (r"blocks\.(\d+)\.ada_gss", r"blocks.\1.offsets"),
    (r"shared_ada_lin\.1\.(.+)", r"shared_modulation.proj.\1"),
    (r"head_nm\.ada_lin\.1\.(.+)", r"norm.modulation.proj.\1"),
    (r"head\.(weight|bias)", r"head.proj.\1"),
    # Buffers that follow from the configuration.
    (r"lvl_1L|attn_bias_for_masking", None),
    (r"blocks\.\d+\.attn\.zero_k_bias", None),
]


def generator_weights(weights: Mapping[str, Tensor], *, source: str = "VAR") -> StateDict:
    """Translate a `VAR` state dict."""
    renamed = rename(weights, RULES, source=source)
    for key, value in renamed.items():
        if re.fullmatch(r"(?:blocks\.\d+\.|shared_)modulation\.proj\.(?:weight|bias)", key):
            renamed[key] = value.unflatten(0, (6, -1))[PARTS].flatten(0, 1)
        elif key.endswith(".offsets"):
            renamed[key] = value[0, 0, PARTS]
        elif key.endswith(".log_scale"):
            renamed[key] = value.flatten()
    return renamed


def generator_config(
    config: Mapping[str, Any], *, vocab_size: int, code_dim: int
) -> dict[str, Any]:
    """Translate the arguments of `VAR`.

    Args:
        config: in the reference's names.
        vocab_size: number of codes of its tokenizer.
        code_dim: latent channels of its tokenizer.
    """
    dim, layers = config["embed_dim"], config["depth"]
    segments = (
        Segment(scale, vocab_sizes=(vocab_size,), dim=code_dim)
        for scale in as_scales(config["patch_nums"])
    )
    return {
        "_target_": "argen.generators.var.VAR",
        "spec": CodeSpec("discrete", tuple(segments)).to_dict(),
        "conditioner": {
            "_target_": "argen.generators.conditioning.ClassConditioner",
            "num_classes": config["num_classes"],
            "dim": dim,
            "drop_rate": config.get("cond_drop_rate", 0.1),
            "null_row": True,
        },
        "dim": dim,
        "layers": layers,
        "heads": config["num_heads"],
        "ffn_ratio": config.get("mlp_ratio", 4.0),
        "norm_eps": config.get("norm_eps", 1e-6),
        "shared_adaln": config.get("shared_aln", False),
        "cosine_attention": config.get("attn_l2_norm", False),
        "residual_dropout": config.get("drop_rate", 0.0),
        "ffn_dropout": config.get("drop_rate", 0.0),
        "attention_dropout": config.get("attn_drop_rate", 0.0),
        "drop_path": config.get("drop_path_rate", 0.0),
    }


def import_generator(
    checkpoint: Any,
    *,
    source: str,
    image_size: int | None = None,
    factor: int = 16,
    heads: int | None = None,
) -> Imported:
    """Import `var_d*.pth`, or the generator of a training checkpoint.

    Args:
        checkpoint: what the file holds; its scales are stored in it.
        source: the file, for messages.
        image_size: side of the images it is wanted for, to be refused if it draws others.
        factor: the tokenizer's down-sampling.
        heads: attention heads, where they are not visible and not 64 wide as the published ones.
    """
    weights = unwrap(inside(checkpoint), keys=("var_wo_ddp",), source=source)
    for key in ("word_embed.weight", "pos_1LC", "lvl_1L"):
        if key not in weights:
            raise CheckpointError(f"{source} is not a VAR generator: no {key}.")
    dim, code_dim = weights["word_embed.weight"].shape
    layers = count(weights, r"blocks\.(\d+)\..*")
    counts = weights["lvl_1L"].flatten().bincount().tolist()
    sides = [round(count**0.5) for count in counts]
    if any(side * side != count for side, count in zip(sides, counts)):
        raise CheckpointError(f"{source}: scales of {counts} codes are not square.")
    if image_size is not None and image_size != sides[-1] * factor:
        raise UserError(
            f"{source} draws images of {sides[-1] * factor} px, not {image_size}: set "
            f"image_size={sides[-1] * factor}."
        )
    temperature = weights.get("blocks.0.attn.scale_mul_1H11")
    if heads is None:
        heads = dim // 64 if temperature is None else temperature.numel()
    config = {
        "embed_dim": dim,
        "depth": layers,
        "num_heads": heads,
        "num_classes": weights["class_emb.weight"].shape[0] - 1,
        "mlp_ratio": weights["blocks.0.ffn.fc1.weight"].shape[0] / dim,
        "shared_aln": "shared_ada_lin.1.weight" in weights,
        "attn_l2_norm": temperature is not None,
        "patch_nums": sides,
        # The published rule.
        "drop_path_rate": 0.1 * layers / 24,
    }
    translated = generator_weights(weights, source=source)
    vocab_size = weights["head.weight"].shape[0]
    built = generator_config(config, vocab_size=vocab_size, code_dim=code_dim)
    return Imported(built, translated, source)
