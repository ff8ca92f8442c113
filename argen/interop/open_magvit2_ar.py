"""The generators of Open-MAGVIT2 (TencentARC/SEED-Voken, Apache-2.0, arXiv 2409.04410) and WeTok.

WeTok (zhuangshaobin/WeTok, arXiv 2508.05599) runs the same network with more sub-tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.interop.base import Imported, Rule, StateDict, count, rename, unwrap
from argen.spec import CodeSpec, Segment

SOURCE = "open_magvit2_ar"

WRAPPERS = ("state_dict",)
PREFIX = "transformer."

# Heads are not visible in the weights; (layers, width) tells the published sizes apart.
HEADS = {(24, 1024): 16, (36, 1280): 20, (48, 1536): 24}

# Everything else in the file: the tokenizer, and networks that only training needs.
OTHERS = r"(first_stage_model|cond_stage_model|permuter|loss|model_ema)\..+"


def block_rules(theirs: str, ours: str) -> list[Rule]:
    """Return the rules of a Llama-style stack of blocks, LlamaGen's names.

    Args:
        theirs: pattern of the stack's name.
        ours: its name here.
    """
    block = rf"{theirs}\.(\d+)"
    return [
        (rf"{block}\.attention\.wqkv\.weight", rf"{ours}.\1.attention.qkv.weight"),
        (rf"{block}\.attention\.wo\.weight", rf"{ours}.\1.attention.out.weight"),
        (rf"{block}\.feed_forward\.w1\.weight", rf"{ours}.\1.ffn.gate.weight"),
        (rf"{block}\.feed_forward\.w3\.weight", rf"{ours}.\1.ffn.up.weight"),
        (rf"{block}\.feed_forward\.w2\.weight", rf"{ours}.\1.ffn.out.weight"),
        (rf"{block}\.(attention_norm|ffn_norm)\.weight", rf"{ours}.\1.\2.weight"),
        # Caches left behind by generation.
        (rf"{block}\.attention\.kv_cache\..+", None),
    ]


RULES: list[Rule] = [
    (r"transformer\.pre_emb\.weight", "head.embed.tables.0.weight"),
    (r"transformer\.post_emb\.weight", "head.embed.tables.1.weight"),
    (r"transformer\.(\d+)_emb\.weight", r"head.embed.tables.\1.weight"),
    (r"transformer\.class_emb\.embedding_table\.weight", "conditioner.table.weight"),
    *block_rules(r"transformer\.spatial_blocks", "blocks"),
    *block_rules(r"transformer\.factorized_blocks", "head.blocks"),
    (r"transformer\.norm\.weight", "head.norm.weight"),
    (r"transformer\.head\.(\d+)\.weight", r"head.projs.\1.weight"),
    (OTHERS, None),
]


def generator_weights(weights: Mapping[str, Tensor], *, source: str = "Open-MAGVIT2") -> StateDict:
    """Translate the transformer's part of a state dict."""
    return rename(weights, RULES, source=source)


def grid_of(block_size: int) -> tuple[int, int]:
    """Return the square grid of a block size."""
    side = math.isqrt(block_size)
    if side * side != block_size:
        raise UserError(f"block_size {block_size} is not a square grid of codes.")
    return side, side


def stack_options(network: Mapping[str, Any]) -> dict[str, Any]:
    """Translate what the transformers of this project share."""
    return {
        "heads": network.get("n_head", 8),
        "kv_heads": network.get("n_kv_head"),
        "ffn_multiplier": network.get("ffn_dim_multiplier"),
        "multiple_of": network.get("multiple_of", 256),
        "norm_eps": network.get("norm_eps", 1e-5),
        "rope": "2d",
        "rope_base": network.get("rope_base", 10000),
        "condition_rope": "zero",
        "token_dropout": network.get("token_drop", 0.1),
        "residual_dropout": network.get("resid_dropout_p", 0.0),
        "ffn_dropout": network.get("ffn_dropout_p", 0.1),
        "attention_dropout": network.get("attn_dropout_p", 0.0),
        "drop_path": network.get("drop_path_rate", 0.0),
        "init_std": network.get("initalizer_range", 0.02),
    }


def generator_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the constructor arguments of a `Net2NetTransformer` with factorised tokens."""
    network = config["transformer_config"]["params"]
    if not network.get("token_factorization", False):
        raise UserError("Only token_factorization=true runs in the reference, and here.")
    if network.get("factorized_n_layer", 2) < 1:
        raise UserError("factorized_n_layer must be 1 or more.")
    bits = list(network.get("factorized_bits", (9, 9)))[: network.get("factorized_k", 2)]
    spec = CodeSpec(
        "discrete",
        (
            Segment(
                grid_of(network["block_size"]),
                vocab_sizes=tuple(2**b for b in bits),
                dim=sum(bits),
            ),
        ),
    )
    dim = network.get("dim", 256)
    return {
        "_target_": "argen.generators.subtoken.SubTokenGPT",
        "spec": spec.to_dict(),
        "conditioner": {
            "_target_": "argen.generators.conditioning.ClassConditioner",
            "num_classes": network.get("class_num", 1000),
            "dim": dim,
            "drop_rate": 0.1,
        },
        "dim": dim,
        "layers": network.get("spatial_n_layer", 12),
        "intra_layers": network.get("factorized_n_layer", 2),
        **stack_options(network),
    }


def import_generator(
    checkpoint: Any,
    *,
    source: str,
    image_size: int = 256,
    factor: int = 16,
    heads: int | None = None,
) -> Imported:
    """Import a released Open-MAGVIT2 or WeTok `.ckpt`.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images; with `factor` it gives the code grid.
        factor: the tokenizer's down-sampling.
        heads: attention heads, where the size is not one of the published ones.
    """
    weights = unwrap(checkpoint, keys=WRAPPERS, source=source)
    if "transformer.spatial_blocks.0.attention.wqkv.weight" not in weights:
        raise CheckpointError(f"{source} holds no inter and intra stacks (transformer.spatial_*).")
    dim = weights["transformer.norm.weight"].shape[0]
    layers = count(weights, r"transformer\.spatial_blocks\.(\d+)\..+")
    heads = published_heads(HEADS, layers, dim, heads, source=source)
    sizes = [
        weights[f"transformer.head.{g}.weight"].shape[0]
        for g in range(count(weights, r"transformer\.head\.(\d+)\..+"))
    ]
    network = {
        "block_size": (image_size // factor) ** 2,
        "token_factorization": True,
        "factorized_k": len(sizes),
        "factorized_bits": [size.bit_length() - 1 for size in sizes],
        "spatial_n_layer": layers,
        "factorized_n_layer": count(weights, r"transformer\.factorized_blocks\.(\d+)\..+"),
        "dim": dim,
        "n_head": heads,
        "n_kv_head": kv_heads(weights["transformer.spatial_blocks.0.attention.wqkv.weight"], heads),
        "class_num": weights["transformer.class_emb.embedding_table.weight"].shape[0] - 1,
        "resid_dropout_p": 0.1,
    }
    config = generator_config({"transformer_config": {"params": network}})
    config["ffn_hidden"] = weights["transformer.spatial_blocks.0.feed_forward.w1.weight"].shape[0]
    return Imported(config, generator_weights(weights, source=source), source)


def sub_token_bits(checkpoint: Any) -> list[int] | None:
    """Return the bits of each sub-token that a generator's file was trained on, if it is one."""
    weights = unwrap(checkpoint, keys=WRAPPERS, source="the checkpoint")
    heads = [k for k in weights if re.fullmatch(r"transformer\.head\.\d+\.weight", k)]
    if not heads:
        return None
    return [
        weights[f"transformer.head.{g}.weight"].shape[0].bit_length() - 1 for g in range(len(heads))
    ]


def kv_heads(wqkv: Tensor, heads: int) -> int:
    """Return the key/value heads of a fused projection ((heads + 2 kv) hd, heads hd)."""
    rows, dim = wqkv.shape
    return (rows - dim) // 2 * heads // dim


def published_heads(
    known: Mapping[tuple[int, int], int],
    layers: int,
    dim: int,
    given: int | None,
    *,
    source: str,
) -> int:
    """Return the attention heads: those given, or those of the published size."""
    found = given or known.get((layers, dim))
    if found is None:
        raise UserError(
            f"{source} has {layers} layers of width {dim}, not a published size; pass heads=N."
        )
    return found
