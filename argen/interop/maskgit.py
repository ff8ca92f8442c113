"""MaskGIT generators of bytedance/1d-tokenizer (Apache-2.0, arXiv 2406.07550): BERT and U-ViT.

One-D-Piece (turingmotors/One-D-Piece, Apache-2.0) uses the BERT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.interop.base import Imported, Rule, StateDict, count, merge, rename, unwrap
from argen.spec import CodeSpec, Segment

SOURCE = "maskgit"

WRAPPERS = ("ema", "model", "state_dict", "module")

# Heads are not visible in the weights; (layers, width) tells the published sizes apart.
HEADS = {(24, 768): 16, (20, 1024): 16}

BERT_RULES: list[Rule] = [
    (r"model\.embeddings\.LayerNorm\.(.+)", r"norm.\1"),
    (r"model\.embeddings\.position_ids", None),
    (
        r"model\.encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.(.+)",
        r"blocks.\1.attention.\2.\3",
    ),
    (
        r"model\.encoder\.layer\.(\d+)\.attention\.output\.dense\.(.+)",
        r"blocks.\1.attention.out.\2",
    ),
    (
        r"model\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(.+)",
        r"blocks.\1.attention_norm.\2",
    ),
    (r"model\.encoder\.layer\.(\d+)\.intermediate\.dense\.(.+)", r"blocks.\1.ffn.fc1.\2"),
    (r"model\.encoder\.layer\.(\d+)\.output\.dense\.(.+)", r"blocks.\1.ffn.fc2.\2"),
    (r"model\.encoder\.layer\.(\d+)\.output\.LayerNorm\.(.+)", r"blocks.\1.ffn_norm.\2"),
    (r"model\.lm_head\.(.+)", r"head.proj.\1"),
]

_UVIT = r"(in_blocks\.\d+|middle|out_blocks\.\d+)\."
UVIT_RULES: list[Rule] = [
    (_UVIT + r"norm1\.(.+)", r"\1.block.attention_norm.\2"),
    (_UVIT + r"norm2\.(.+)", r"\1.block.ffn_norm.\2"),
    (_UVIT + r"attn\.qkv\.(.+)", r"\1.block.attention.qkv.\2"),
    (_UVIT + r"attn\.proj\.(.+)", r"\1.block.attention.out.\2"),
    (_UVIT + r"mlp\.(fc1|fc2)\.(.+)", r"\1.block.ffn.\2.\3"),
    (_UVIT + r"skip_linear\.(.+)", r"\1.skip.\2"),
    (r"norm\.(.+)", r"norm.\1"),
    (r"lm_head\.(.+)", r"head.proj.\1"),
]


def generator_weights(weights: Mapping[str, Tensor], *, source: str = "MaskGIT") -> StateDict:
    """Translate an `ImageBert` or `UViTBert` state dict.

    One table holds codes, mask, classes and the null class, in this order; it is split after the
    mask. BERT's token type is always 0, so its row is added to the positions.
    """
    rest = dict(weights)
    if "embeddings.weight" in rest:
        table, head = rest.pop("embeddings.weight"), rest["lm_head.weight"]
        positions = rest.pop("pos_embed")[0]
        rest = {re.sub(r"^mid_block\.", "middle.", key): value for key, value in rest.items()}
        ours = rename(rest, UVIT_RULES, source=source)
    else:
        prefix = "model.embeddings."
        table, head = rest.pop(f"{prefix}word_embeddings.weight"), rest["model.lm_head.weight"]
        positions = rest.pop(f"{prefix}position_embeddings.weight")
        positions = positions + rest.pop(f"{prefix}token_type_embeddings.weight")[0]
        ours = merge(rename(rest, BERT_RULES, source=source), ("query", "key", "value"), "qkv")
    codes = head.shape[0] + 1
    return ours | {
        "embed.weight": table[:codes],
        "conditioner.table.weight": table[codes:],
        "positions": positions,
    }


def generator_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the reference's nested configuration."""
    vq, generator = config["model"]["vq_model"], config["model"]["generator"]
    kind = generator.get("model_type", "ViT")
    if kind not in ("ViT", "UViT"):
        raise UserError(f"Unknown model_type {kind!r} of a MaskGIT generator; use ViT or UViT.")
    losses = config.get("losses", {})
    dim = generator.get("hidden_size", 768)
    hidden = generator.get("intermediate_size", 3072)
    spec = CodeSpec(
        "discrete",
        (
            Segment(
                (1, generator["image_seq_len"]),
                vocab_sizes=(vq["codebook_size"],),
                dim=vq.get("token_size", 0),
            ),
        ),
    )
    built: dict[str, Any] = {
        "_target_": "argen.generators.maskgit."
        + ("bert.MaskGITBert" if kind == "ViT" else "uvit.MaskGITUViT"),
        "spec": spec.to_dict(),
        "conditioner": {
            "_target_": "argen.generators.conditioning.ClassConditioner",
            "num_classes": generator.get("condition_num_classes", 1000),
            "dim": dim,
            "drop_rate": generator.get("class_label_dropout", 0.1),
            "null_row": True,
        },
        "dim": dim,
        "layers": generator.get("num_hidden_layers", 24),
        "heads": generator.get("num_attention_heads", 16),
        "ffn_hidden": hidden if kind == "ViT" else int(dim * (hidden / dim)),
        "label_smoothing": losses.get("label_smoothing", 0.1),
        "unmasked_weight": losses.get("loss_weight_unmasked_token", 0.1),
        "plan_steps": generator.get("num_steps", 8),
    }
    if kind == "ViT":
        # The U-ViT reads these options and applies none.
        built["dropout"] = generator.get("dropout", 0.1)
        built["attention_dropout"] = generator.get("attn_drop", 0.1)
    return built


def import_generator(
    checkpoint: Any,
    *,
    source: str,
    image_size: int = 256,
    heads: int | None = None,
    code_dim: int = 12,
) -> Imported:
    """Import a released `generator_titok_*.bin` or hub file.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images, as for all importers; these codes have no grid to fit.
        heads: attention heads, where the size is not a published one.
        code_dim: width of the tokenizer's codebook rows, which the generator does not show.
    """
    weights = unwrap(checkpoint, keys=WRAPPERS, source=source)
    uvit = "embeddings.weight" in weights
    if not uvit and "model.embeddings.word_embeddings.weight" not in weights:
        raise CheckpointError(f"{source} is not a MaskGIT generator: no word embeddings.")
    if uvit:
        table, head = weights["embeddings.weight"], weights["lm_head.weight"]
        positions, layers = weights["pos_embed"][0], 2 * count(weights, r"in_blocks\.(\d+)\..*")
        hidden = weights["mid_block.mlp.fc1.weight"].shape[0]
    else:
        table = weights["model.embeddings.word_embeddings.weight"]
        head = weights["model.lm_head.weight"]
        positions = weights["model.embeddings.position_embeddings.weight"]
        layers = count(weights, r"model\.encoder\.layer\.(\d+)\..*")
        hidden = weights["model.encoder.layer.0.intermediate.dense.weight"].shape[0]
    vocab, dim = head.shape
    heads = heads or HEADS.get((layers, dim))
    if heads is None:
        raise UserError(
            f"{source} has {layers} layers of width {dim}, not a published size; pass heads=N."
        )
    config = {
        "model": {
            "vq_model": {"codebook_size": vocab, "token_size": code_dim},
            "generator": {
                "model_type": "UViT" if uvit else "ViT",
                "hidden_size": dim,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "intermediate_size": hidden,
                "image_seq_len": positions.shape[0] - 1,
                "condition_num_classes": table.shape[0] - vocab - 2,
            },
        }
    }
    built = generator_config(config)
    built["ffn_hidden"] = hidden
    return Imported(built, generator_weights(weights, source=source), source)
