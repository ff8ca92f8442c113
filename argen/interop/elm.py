"""ELM (Pepper-lll/LMforImageGeneration, no licence stated, arXiv 2410.16257): the AR generator.

Its tokenizers are binary autoencoders, those of `argen.interop.binary_ae`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.interop.base import Imported, Rule, StateDict, count, rename, unwrap
from argen.interop.binary_ae import import_tokenizer as import_tokenizer
from argen.interop.open_magvit2_ar import block_rules, grid_of, kv_heads, published_heads
from argen.spec import CodeSpec, Segment

SOURCE = "elm"

WRAPPERS = ("model", "state_dict", "module")
HEADS = {
    (12, 768): 12,
    (24, 1024): 16,
    (36, 1280): 20,
    (48, 1536): 24,
    (48, 1792): 28,
    (48, 2560): 40,
}

RULES: list[Rule] = [
    (r"tok_embedder\.weight", "head.embed.tables.0.weight"),
    (r"tok_embedder\.(\d+)\.weight", r"head.embed.tables.\1.weight"),
    (r"proj\.weight", "head.embed.proj.weight"),
    (r"cls_embedding\.embedding_table\.weight", "conditioner.table.weight"),
    *block_rules("layers", "blocks"),
    (r"layers\.(\d+)\.adaLN_modulation\.1\.(weight|bias)", r"blocks.\1.modulation.proj.\2"),
    (r"final_adaLN\.1\.(weight|bias)", r"norm.modulation.proj.\1"),
    (r"norm\.weight", "norm.weight"),
    (r"output\.weight", "head.projs.0.weight"),
    (r"output\.(\d+)\.weight", r"head.projs.\1.weight"),
    (r"freqs_cis", None),
]


def generator_weights(weights: Mapping[str, Tensor], *, source: str = "ELM") -> StateDict:
    """Translate a `Transformer` state dict of the autoregressive model."""
    found = rename(weights, RULES, source=source)
    if "norm.modulation.proj.weight" in found:
        found["norm.norm.weight"] = found.pop("norm.weight")
        for part in ("weight", "bias"):
            # Theirs is shift, then scale.
            key = f"norm.modulation.proj.{part}"
            found[key] = found[key].unflatten(0, (2, -1)).flip(0).flatten(0, 1)
    return found


def generator_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate `ModelArgs` of the autoregressive model, over the bits of a binary autoencoder."""
    if config.get("attn_type", "sdp") != "sdp" or config.get("pos_type", "rope2d") != "rope2d":
        raise UserError("ELM's cosine attention and 1-D positions are not supported.")
    dim, bits, parts = config["dim"], config["code_dim"], config.get("token_each", 4)
    grid = grid_of(config.get("block_size", 256))
    width = config.get("embed_dim") or bits * parts
    spec = CodeSpec("binary", (Segment(grid, bits=bits * parts, dim=width),))
    network: dict[str, Any] = {"_target_": "argen.generators.subtoken.SubTokenGPT"}
    if config.get("use_adaLN", False):
        network = {
            "_target_": "argen.generators.adaln_gpt.AdaLNSubTokenGPT",
            "init_modulation": 0.0,
            "init_gate": 0.0,
        }
    return {
        **network,
        "spec": spec.to_dict(),
        "conditioner": {
            "_target_": "argen.generators.conditioning.ClassConditioner",
            "num_classes": config.get("num_classes", 1000),
            "dim": dim,
            "drop_rate": config.get("class_dropout_prob", 0.1),
        },
        "dim": dim,
        "layers": config["n_layer"],
        "intra_layers": 0,
        "heads": config["n_head"],
        "kv_heads": config.get("n_kv_head"),
        "split": [2**bits] * parts,
        "combine": "concat" if parts > 1 else "sum",
        "average": True,
        "ffn_multiplier": config.get("ffn_dim_multiplier"),
        "multiple_of": config.get("multiple_of", 256),
        "norm_eps": config.get("norm_eps", 1e-5),
        "rope": "2d",
        "rope_base": config.get("rope_base", 10000),
        "condition_rope": "zero",
        "token_dropout": config.get("token_dropout_p", 0.1),
        "residual_dropout": config.get("resid_dropout_p", 0.1),
        "ffn_dropout": config.get("ffn_dropout_p", 0.1),
        "attention_dropout": config.get("attn_dropout_p", 0.0),
        "drop_path": config.get("drop_path_rate", 0.0),
        "init_std": config.get("initializer_range", 0.02),
    }


def import_generator(
    checkpoint: Any,
    *,
    source: str,
    image_size: int = 256,
    factor: int = 16,
    heads: int | None = None,
    embed_dim: int | None = None,
) -> Imported:
    """Import an autoregressive checkpoint.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images; with `factor` it gives the code grid.
        factor: the tokenizer's down-sampling.
        heads: attention heads, where the size is not one of the published ones.
        embed_dim: width of the tokenizer's vectors, which the weights do not show; as many as there
            are bits when None.
    """
    weights = unwrap(checkpoint, keys=WRAPPERS, source=source)
    tables = [v for k, v in weights.items() if k.startswith("tok_embedder.")]
    if not tables:
        raise CheckpointError(f"{source} is not an ELM generator: no tok_embedder.")
    vocab, dim = tables[0].shape
    layers = count(weights, r"layers\.(\d+)\..+")
    heads = published_heads(HEADS, layers, dim, heads, source=source)
    config = generator_config(
        {
            "dim": dim,
            "n_layer": layers,
            "n_head": heads,
            "n_kv_head": kv_heads(weights["layers.0.attention.wqkv.weight"], heads),
            "embed_dim": embed_dim,
            "code_dim": vocab.bit_length() - 1,
            "token_each": len(tables),
            "block_size": (image_size // factor) ** 2,
            "num_classes": weights["cls_embedding.embedding_table.weight"].shape[0] - 1,
            "use_adaLN": "final_adaLN.1.weight" in weights,
        }
    )
    config["ffn_hidden"] = weights["layers.0.feed_forward.w1.weight"].shape[0]
    return Imported(config, generator_weights(weights, source=source), source)
