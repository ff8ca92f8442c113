"""LANTERN's drafters (jadohu/LANTERN, no licence, arXiv 2410.03355): facts of the format alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.interop.base import Imported, Rule, StateDict, merge, rename, unwrap
from argen.spec import CodeSpec, Segment

SOURCE = "lantern"

# Grid and prefix of the published targets, by `input_type`: stage 1 and stage 2 of LlamaGen t2i.
GRIDS = {"t2i": (16, 16), "t2i2": (32, 32)}
CAPTION = 120

RULES: list[Rule] = [
    (r"embed_tokens\.weight", "embed.weight"),
    (r"fc\.(weight|bias)", r"fc.\1"),
    (r"layers\.(\d+)\.self_attn\.([qkv])_proj\.weight", r"blocks.\1.attention.\2.weight"),
    (r"layers\.(\d+)\.self_attn\.o_proj\.weight", r"blocks.\1.attention.out.weight"),
    (r"layers\.(\d+)\.mlp\.(gate|up)_proj\.weight", r"blocks.\1.ffn.\2.weight"),
    (r"layers\.(\d+)\.mlp\.down_proj\.weight", r"blocks.\1.ffn.out.weight"),
    (r"layers\.(\d+)\.input_layernorm\.weight", r"blocks.\1.attention_norm.weight"),
    (r"layers\.(\d+)\.post_attention_layernorm\.weight", r"blocks.\1.ffn_norm.weight"),
    (r".*rotary_emb\.inv_freq|freqs_cis", None),
]


def drafter_weights(weights: Mapping[str, Tensor], *, source: str = "LANTERN") -> StateDict:
    """Translate a drafter's state dict."""
    return merge(rename(weights, RULES, source=source), ("q", "k", "v"), "qkv")


def drafter_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the drafter's `config.json`."""
    kind = config.get("input_type", "t2i")
    if kind not in GRIDS:
        raise UserError(f"Unknown input_type {kind!r} of a LANTERN drafter; known: {list(GRIDS)}.")
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"LANTERN's drafters have SiLU gates, not {config['hidden_act']}.")
    spec = CodeSpec("discrete", (Segment(GRIDS[kind], vocab_sizes=(config["vocab_size"],), dim=8),))
    return {
        "_target_": "argen.generators.drafter.feature_drafter.FeatureDrafter",
        "spec": spec.to_dict(),
        "dim": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "kv_heads": config.get("num_key_value_heads"),
        "layers": config.get("num_hidden_layers", 1),
        "ffn_hidden": config["intermediate_size"],
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_base": config.get("rope_theta", 10000.0),
        "prefix_length": CAPTION,
        "bias": config.get("bias", True),
    }


def import_drafter(
    checkpoint: Any, *, source: str, heads: int = 20, input_type: str = "t2i"
) -> Imported:
    """Import a released drafter file; its widths are read off the weights.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        heads: attention heads, which the weights do not show (20 for LlamaGen-XL).
        input_type: `t2i` for 256 pixels, `t2i2` for 512.
    """
    weights = unwrap(checkpoint, keys=("model", "state_dict"), source=source)
    if "fc.weight" not in weights or "embed_tokens.weight" not in weights:
        raise CheckpointError(f"{source} is not a LANTERN drafter: no fc.weight or embed_tokens.")
    dim = weights["fc.weight"].shape[0]
    layers = {m.group(1) for key in weights if (m := re.match(r"layers\.(\d+)\.", key))}
    config = {
        "input_type": input_type,
        "vocab_size": weights["embed_tokens.weight"].shape[0],
        "hidden_size": dim,
        "num_attention_heads": heads,
        "num_key_value_heads": weights["layers.0.self_attn.k_proj.weight"].shape[0] * heads // dim,
        "num_hidden_layers": len(layers),
        "intermediate_size": weights["layers.0.mlp.up_proj.weight"].shape[0],
        "bias": "fc.bias" in weights,
    }
    return Imported(drafter_config(config), drafter_weights(weights, source=source), source)
