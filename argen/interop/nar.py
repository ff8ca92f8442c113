"""NAR (ThisisBillhe/NAR, NAR-images, MIT-style, arXiv 2503.10696): LlamaGen with two heads.

The tokenizer is LlamaGen's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.interop.base import Imported, Rule, StateDict, rename, unwrap
from argen.interop.llamagen import import_tokenizer as import_tokenizer
from argen.interop.llamagen import llamagen

SOURCE = "nar"

HEADS = llamagen.HEADS | {(18, 1024): 16}

RULES: list[Rule] = [
    *llamagen.GPT_RULES,
    (r"medusa_norm\.weight", "down_norm.weight"),
    (r"medusa_output\.weight", "down_head.proj.weight"),
]


def generator_weights(weights: Mapping[str, Tensor], *, source: str = "NAR") -> StateDict:
    """Translate a `Transformer` state dict."""
    return rename(weights, RULES, source=source)


def generator_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate `ModelArgs` of the transformer."""
    shared = llamagen.generator_config(config)
    # The published network has 2-D positions on a grid and one prefix alone.
    del shared["rope"]
    return shared | {
        "_target_": "argen.generators.nar.NAR",
        "down_layers": config.get("medusa_attention_num", 1),
    }


def import_generator(
    checkpoint: Any,
    *,
    source: str,
    image_size: int = 256,
    factor: int = 16,
    heads: int | None = None,
    down_layers: int = 1,
) -> Imported:
    """Import a released c2i or t2i file.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images; with `factor` it gives the code grid.
        factor: the tokenizer's down-sampling.
        heads: attention heads, where the size is not one of the published ones.
        down_layers: blocks of the down head alone, invisible in the weights.
    """
    weights = unwrap(checkpoint, keys=llamagen.WRAPPERS, source=source)
    for key in ("tok_embeddings.weight", "medusa_output.weight"):
        if key not in weights:
            raise CheckpointError(f"{source} is not a NAR generator: no {key}.")
    vocab, dim = weights["tok_embeddings.weight"].shape
    numbers = [int(m[1]) for key in weights if (m := re.match(r"layers\.(\d+)\.", key))]
    layers = max(numbers) + 1 - down_layers
    heads = heads or HEADS.get((layers, dim))
    if heads is None:
        raise UserError(
            f"{source} has {layers} layers of width {dim}, not a published size; pass heads=N."
        )
    kv = (weights["layers.0.attention.wqkv.weight"].shape[0] - dim) // 2
    config: dict[str, Any] = {
        "dim": dim,
        "n_layer": layers,
        "n_head": heads,
        "n_kv_head": kv * heads // dim,
        "vocab_size": vocab,
        "block_size": (image_size // factor) ** 2,
        "medusa_attention_num": down_layers,
    }
    null = weights.get("cls_embedding.uncond_embedding")
    if null is not None:
        config |= {"model_type": "t2i", "caption_dim": null.shape[1], "cls_token_num": 120}
        config["null_length"] = null.shape[0]
    else:
        # Released class-conditional models were trained with label dropout: one row is the null.
        config["num_classes"] = weights["cls_embedding.embedding_table.weight"].shape[0] - 1
    built = generator_config(config)
    built["ffn_hidden"] = weights["layers.0.feed_forward.w1.weight"].shape[0]
    return Imported(built, generator_weights(weights, source=source), source)
