"""RAR (bytedance/1d-tokenizer, Apache-2.0, arXiv 2411.00776)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError
from argen.interop.base import Imported, Rule, StateDict, rename, unwrap
from argen.interop.maskgit_vqgan import import_tokenizer as import_tokenizer
from argen.spec import CodeSpec, Segment

SOURCE = "rar"

WRAPPERS = ("model", "state_dict", "module")
# Rows of the tables beyond those of the codes.
SPARE_POSITIONS, SPARE_STEPS = 1024, 100

RULES: list[Rule] = [
    (r"cls_token", "cls_token"),
    (r"pos_embed", "positions"),
    (r"target_aware_pos_embed", "targets"),
    (r"timesteps_embeddings", "steps"),
    (r"embeddings\.weight", "embed.weight"),
    (r"lm_head\.(weight|bias)", r"head.proj.\1"),
    (r"blocks\.(\d+)\.norm1\.(weight|bias)", r"blocks.\1.attention_norm.\2"),
    (r"blocks\.(\d+)\.norm2\.(weight|bias)", r"blocks.\1.ffn_norm.\2"),
    (r"blocks\.(\d+)\.attn\.(qkv|q_norm|k_norm)\.(weight|bias)", r"blocks.\1.attention.\2.\3"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"blocks.\1.attention.out.\2"),
    (r"blocks\.(\d+)\.mlp\.(fc1|fc2)\.(weight|bias)", r"blocks.\1.ffn.\2.\3"),
    (r"blocks\.(\d+)\.adaLN_modulation\.1\.(weight|bias)", r"blocks.\1.modulation.proj.\2"),
    (r"adaln_before_head\.adaLN_modulation\.1\.(weight|bias)", r"norm.modulation.proj.\1"),
    (r"attn_mask", None),
]


def generator_weights(weights: Mapping[str, Tensor], *, source: str = "RAR") -> StateDict:
    """Translate a `RAR` state dict.

    One table holds codes, an unused mask id, classes and the null class; ours are two.
    """
    found = rename(weights, RULES, source=source)
    vocab, table = weights["lm_head.weight"].shape[0], found["embed.weight"]
    found["embed.weight"] = table[:vocab]
    found["conditioner.table.weight"] = table[vocab + 1 :]
    for name in ("positions", "targets", "steps"):
        found[name] = found[name][0]
    found["cls_token"] = found["cls_token"][0, 0]
    return found


def generator_config(
    config: Mapping[str, Any], *, grid: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Translate the YAML configuration (`model.vq_model`, `model.generator`).

    Args:
        config: the configuration.
        grid: (h, w) of the codes; when None a square one, or a line if there is none.
    """
    model = config.get("model", config)
    network, length = model["generator"], model["generator"]["image_seq_len"]
    side = math.isqrt(length)
    shape = grid or ((side, side) if side * side == length else (1, length))
    spec = CodeSpec(
        "discrete",
        (
            Segment(
                shape,
                vocab_sizes=(model["vq_model"]["codebook_size"],),
                dim=model["vq_model"].get("token_size", 256),
            ),
        ),
    )
    return {
        "_target_": "argen.generators.rar.RAR",
        "spec": spec.to_dict(),
        "conditioner": {
            "_target_": "argen.generators.conditioning.ClassConditioner",
            "num_classes": network["condition_num_classes"],
            "dim": network["hidden_size"],
            "drop_rate": network.get("class_label_dropout", 0.1),
            "null_row": True,
        },
        "dim": network["hidden_size"],
        "layers": network["num_hidden_layers"],
        "heads": network["num_attention_heads"],
        "ffn_hidden": network["intermediate_size"],
        "dropout": network.get("dropout", 0.1),
        "attention_dropout": network.get("attn_drop", 0.1),
        # Two of the tables' extra rows are those of the class token and the condition.
        "spare_positions": SPARE_POSITIONS - 2,
        "spare_steps": SPARE_STEPS - 2,
    }


def import_generator(
    checkpoint: Any,
    *,
    source: str,
    image_size: int = 256,
    factor: int = 16,
    code_dim: int = 256,
) -> Imported:
    """Import a released `rar_*.bin`; every size is read off the weights.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images.
        factor: the tokenizer's down-sampling; where the number of codes is not that of the grid
            these two give, they are taken for a line, as of TiTok.
        code_dim: width of the tokenizer's codebook; 256 for MaskGIT-VQGAN, the published one.
    """
    weights = unwrap(checkpoint, keys=WRAPPERS, source=source)
    if "target_aware_pos_embed" not in weights:
        raise CheckpointError(f"{source} is not a RAR generator: no target_aware_pos_embed.")
    vocab, dim = weights["lm_head.weight"].shape
    length = weights["pos_embed"].shape[1] - SPARE_POSITIONS
    side = image_size // factor
    grid = (side, side) if side * side == length else (1, length)
    layers = {m[1] for key in weights if (m := re.match(r"blocks\.(\d+)\.", key))}
    config = generator_config(
        {
            "vq_model": {"codebook_size": vocab, "token_size": code_dim},
            "generator": {
                "hidden_size": dim,
                "num_hidden_layers": len(layers),
                "num_attention_heads": dim // weights["blocks.0.attn.q_norm.weight"].shape[0],
                "intermediate_size": weights["blocks.0.mlp.fc1.weight"].shape[0],
                "image_seq_len": length,
                "condition_num_classes": weights["embeddings.weight"].shape[0] - vocab - 2,
            },
        },
        grid=grid,
    )
    return Imported(config, generator_weights(weights, source=source), source)
