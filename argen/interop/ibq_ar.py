"""The generator of IBQ (TencentARC/SEED-Voken, Apache-2.0, arXiv 2412.02692)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError
from argen.interop.base import Imported, Rule, StateDict, count, rename, unwrap
from argen.interop.open_magvit2_ar import (
    OTHERS,
    WRAPPERS,
    block_rules,
    grid_of,
    kv_heads,
    published_heads,
    stack_options,
)
from argen.spec import CodeSpec, Segment

SOURCE = "ibq_ar"

HEADS = {(16, 1024): 16, (20, 1280): 20, (24, 1536): 24, (30, 1920): 30}

# Theirs: gates, scales, shifts, each of attention and feed-forward; ours: shift, scale, gate of
# the one, then of the other.
MODULATION_ORDER = [4, 2, 0, 5, 3, 1]

RULES: list[Rule] = [
    (r"transformer\.tok_emb\.weight", "embed.weight"),
    (r"transformer\.embedding_projection\.(fc1|fc2)\.(weight|bias)", r"embed.\1.\2"),
    (r"transformer\.class_emb\.embedding_table\.weight", "conditioner.table.weight"),
    *block_rules(r"transformer\.blocks", "blocks"),
    (r"transformer\.blocks\.(\d+)\.ada_lin\.1\.(weight|bias)", r"blocks.\1.modulation.proj.\2"),
    (r"transformer\.blocks\.(\d+)\.ada_gss", r"blocks.\1.offsets"),
    (r"transformer\.shared_ada_lin\.1\.(weight|bias)", r"modulation.proj.\1"),
    (r"transformer\.head_nm\.rmsnorm\.weight", "norm.norm.weight"),
    (r"transformer\.head_nm\.ada_lin\.1\.(weight|bias)", r"norm.modulation.proj.\1"),
    (r"transformer\.head\.weight", "head.proj.weight"),
    (OTHERS, None),
]


def generator_weights(weights: Mapping[str, Tensor], *, source: str = "IBQ") -> StateDict:
    """Translate the transformer's part of a state dict."""
    found: StateDict = {}
    for key, value in rename(weights, RULES, source=source).items():
        if key.endswith(".offsets"):
            value = value[0, 0][MODULATION_ORDER]
        elif ".modulation.proj." in f".{key}" and not key.startswith("norm."):
            value = value.unflatten(0, (6, -1))[MODULATION_ORDER].flatten(0, 1)
        elif key == "embed.weight" and "transformer.embedding_projection.fc1.weight" in weights:
            key = "embed.table.weight"
        found[key] = value
    return found


def generator_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the constructor arguments of a `Net2NetTransformer` over IBQ codes."""
    network = config["transformer_config"]["params"]
    stage = (config.get("first_stage_config") or {}).get("params") or {}
    spec = CodeSpec(
        "discrete",
        (
            Segment(
                grid_of(network["block_size"]),
                vocab_sizes=(network["vocab_size"],),
                dim=stage.get("embed_dim", 256),
            ),
        ),
    )
    dim, codebook = network.get("n_embd", 256), network.get("n_codebook_embd", 256)
    return {
        "_target_": "argen.generators.adaln_gpt.AdaLNGPT",
        "spec": spec.to_dict(),
        "conditioner": {
            "_target_": "argen.generators.conditioning.ClassConditioner",
            "num_classes": network.get("class_num", 1000),
            "dim": dim,
            "drop_rate": 0.1,
        },
        "dim": dim,
        "layers": network.get("n_layer", 12),
        **stack_options(network),
        "shared_adaln": network.get("shared_aln", False),
        "init_gate": network.get("alng", 1e-3),
        "codebook_dim": codebook if network.get("use_pretrained_codebook", False) else 0,
    }


def import_generator(
    checkpoint: Any,
    *,
    source: str,
    image_size: int = 256,
    factor: int = 16,
    heads: int | None = None,
) -> Imported:
    """Import a released `.ckpt`.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images; with `factor` it gives the code grid.
        factor: the tokenizer's down-sampling.
        heads: attention heads, where the size is not one of the published ones.
    """
    weights = unwrap(checkpoint, keys=WRAPPERS, source=source)
    if "transformer.head_nm.rmsnorm.weight" not in weights:
        raise CheckpointError(f"{source} is not an IBQ generator: no transformer.head_nm.")
    vocab, dim = weights["transformer.head.weight"].shape
    layers = count(weights, r"transformer\.blocks\.(\d+)\..+")
    heads = published_heads(HEADS, layers, dim, heads, source=source)
    codebook = weights.get("first_stage_model.quantize.embedding.weight")
    table = weights["transformer.tok_emb.weight"]
    network = {
        "vocab_size": vocab,
        "block_size": (image_size // factor) ** 2,
        "n_layer": layers,
        "n_head": heads,
        "n_kv_head": kv_heads(weights["transformer.blocks.0.attention.wqkv.weight"], heads),
        "n_embd": dim,
        "class_num": weights["transformer.class_emb.embedding_table.weight"].shape[0] - 1,
        "shared_aln": "transformer.shared_ada_lin.1.weight" in weights,
        "use_pretrained_codebook": "transformer.embedding_projection.fc1.weight" in weights,
        "n_codebook_embd": table.shape[1],
        "resid_dropout_p": 0.1,
    }
    stage = {} if codebook is None else {"embed_dim": codebook.shape[1]}
    config = generator_config(
        {"transformer_config": {"params": network}, "first_stage_config": {"params": stage}}
    )
    config["ffn_hidden"] = weights["transformer.blocks.0.feed_forward.w1.weight"].shape[0]
    return Imported(config, generator_weights(weights, source=source), source)
