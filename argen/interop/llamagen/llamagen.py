"""LlamaGen (FoundationVision/LlamaGen, MIT, arXiv 2406.06525): tokenizers and generators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.interop.base import Imported, Rule, StateDict, copy_in, count, merge, rename, unwrap
from argen.spec import CodeSpec, Segment

WRAPPERS = ("model", "module", "state_dict")  # the released files' own order of preference

# Heads are not visible in the weights; (layers, width) tells the published sizes apart.
HEADS = {
    (12, 768): 12,
    (24, 1024): 16,
    (36, 1280): 20,
    (48, 1536): 24,
    (48, 2560): 40,
    (22, 2048): 32,
    (24, 3200): 32,
    (32, 4096): 32,
}

CNN_RULES: list[Rule] = [
    (r"(encoder|decoder)\.(conv_in|conv_out|norm_out)\.(weight|bias)", r"\1.\2.\3"),
    (
        r"(encoder|decoder)\.conv_blocks\.(\d+)\.res\.(\d+)\.nin_shortcut\.(.+)",
        r"\1.levels.\2.blocks.\3.shortcut.\4",
    ),
    (r"(encoder|decoder)\.conv_blocks\.(\d+)\.res\.(\d+)\.(.+)", r"\1.levels.\2.blocks.\3.\4"),
    (
        r"(encoder|decoder)\.conv_blocks\.(\d+)\.attn\.(\d+)\.proj_out\.(.+)",
        r"\1.levels.\2.attentions.\3.out.\4",
    ),
    (r"(encoder|decoder)\.conv_blocks\.(\d+)\.attn\.(\d+)\.(.+)", r"\1.levels.\2.attentions.\3.\4"),
    (
        r"(encoder|decoder)\.conv_blocks\.(\d+)\.(?:down|up)sample\.conv\.(.+)",
        r"\1.levels.\2.resample.conv.\3",
    ),
    (r"(encoder|decoder)\.mid\.1\.proj_out\.(.+)", r"\1.middle.1.out.\2"),
    (r"(encoder|decoder)\.mid\.(\d+)\.nin_shortcut\.(.+)", r"\1.middle.\2.shortcut.\3"),
    (r"(encoder|decoder)\.mid\.(\d+)\.(.+)", r"\1.middle.\2.\3"),
    (r"(quant_conv|post_quant_conv)\.(.+)", r"\1.\2"),
    (r"quantize\.embedding\.weight", "quantizer.codebook.weight"),
    (r"quantize\.codebook_used", None),
]

GPT_RULES: list[Rule] = [
    (r"tok_embeddings\.weight", "embed.weight"),
    (r"output\.weight", "head.proj.weight"),
    (r"norm\.weight", "norm.weight"),
    (r"layers\.(\d+)\.attention\.wqkv\.weight", r"blocks.\1.attention.qkv.weight"),
    (r"layers\.(\d+)\.attention\.wo\.weight", r"blocks.\1.attention.out.weight"),
    (r"layers\.(\d+)\.feed_forward\.w1\.weight", r"blocks.\1.ffn.gate.weight"),
    (r"layers\.(\d+)\.feed_forward\.w3\.weight", r"blocks.\1.ffn.up.weight"),
    (r"layers\.(\d+)\.feed_forward\.w2\.weight", r"blocks.\1.ffn.out.weight"),
    (r"layers\.(\d+)\.(attention_norm|ffn_norm)\.weight", r"blocks.\1.\2.weight"),
    (r"cls_embedding\.embedding_table\.weight", "conditioner.table.weight"),
    (r"cls_embedding\.cap_proj\.(fc1|fc2)\.weight", r"conditioner.\1.weight"),
    (r"cls_embedding\.uncond_embedding", "conditioner.null_caption"),
    # Left behind by old files and by generation with a cache attached.
    (r"freqs_cis", None),
    (r"layers\.\d+\.attention\.kv_cache\..+", None),
]


def tokenizer_weights(weights: Mapping[str, Tensor], *, source: str = "LlamaGen VQ") -> StateDict:
    """Translate a `VQModel` state dict."""
    return merge(rename(weights, CNN_RULES, source=source), ("q", "k", "v"), "qkv")


def tokenizer_config(config: Mapping[str, Any], *, image_size: int | list[int]) -> dict[str, Any]:
    """Translate `ModelArgs` of the VQ model; its fixed widths may be overridden by kwargs."""
    down, up = list(config["encoder_ch_mult"]), list(config["decoder_ch_mult"])
    encoder, decoder = config.get("encoder_kwargs", {}), config.get("decoder_kwargs", {})
    dropout = config.get("dropout_p", 0.0)
    return {
        "_target_": "argen.tokenizers.cnn.CNNTokenizer",
        "image_size": image_size,
        "encoder": {
            "_target_": "argen.tokenizers.cnn.Encoder",
            "channels": encoder.get("ch", 128),
            "multipliers": down,
            "blocks": encoder.get("num_res_blocks", 2),
            "out_channels": config.get("z_channels", 256),
            "in_channels": encoder.get("in_channels", 3),
            "attention_levels": [-1],
            "dropout": dropout,
        },
        "decoder": {
            "_target_": "argen.tokenizers.cnn.Decoder",
            "channels": decoder.get("ch", 128),
            "multipliers": up,
            "blocks": decoder.get("num_res_blocks", 2) + 1,
            "in_channels": config.get("z_channels", 256),
            "out_channels": decoder.get("out_channels", 3),
            "attention_levels": [-1],
            "dropout": dropout,
        },
        "quantizer": {
            "_target_": "argen.tokenizers.quantizers.vq.VQ",
            "codes": config.get("codebook_size", 16384),
            "dim": config.get("codebook_embed_dim", 8),
            "l2_norm": config.get("codebook_l2_norm", True),
            "entropy": config.get("entropy_loss_ratio", 0.0) > 0,
        },
    }


def loss_weights(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the weights of the quantiser's named losses."""
    return {
        "codebook": 1.0,
        "commitment": config.get("commit_loss_beta", 0.25),
        "entropy": config.get("entropy_loss_ratio", 0.0),
    }


def generator_weights(weights: Mapping[str, Tensor], *, source: str = "LlamaGen") -> StateDict:
    """Translate a `Transformer` state dict."""
    return rename(weights, GPT_RULES, source=source)


def generator_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate `ModelArgs` of the transformer."""
    dim, side = config["dim"], round(config["block_size"] ** 0.5)
    if side * side != config["block_size"]:
        raise UserError(f"LlamaGen's block_size {config['block_size']} is not a square grid.")
    text = config.get("model_type", "c2i") == "t2i"
    conditioner: dict[str, Any] = {"dim": dim, "drop_rate": config.get("class_dropout_prob", 0.1)}
    if text:
        conditioner |= {
            "_target_": "argen.generators.conditioning.TextConditioner",
            "feature_dim": config["caption_dim"],
            "length": config["cls_token_num"],
            "null_length": config.get("null_length", 120),
        }
    else:
        conditioner |= {
            "_target_": "argen.generators.conditioning.ClassConditioner",
            "num_classes": config["num_classes"],
        }
    spec = CodeSpec(
        "discrete",
        (
            Segment(
                (side, side), vocab_sizes=(config["vocab_size"],), dim=config.get("code_dim", 8)
            ),
        ),
    )
    return {
        "_target_": "argen.generators.gpt.GPT",
        "spec": spec.to_dict(),
        "conditioner": conditioner,
        "dim": dim,
        "layers": config["n_layer"],
        "heads": config["n_head"],
        "kv_heads": config.get("n_kv_head"),
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


def import_tokenizer(
    checkpoint: Any, *, source: str, image_size: int = 256, copy: str | None = None
) -> Imported:
    """Import a released `vq_ds8_*.pt` or `vq_ds16_*.pt` file; every width is read off it.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images.
        copy: `model` or `ema`, where a file holds both. By default `model`, which the published
            sampling and code extraction read; the published reconstruction script prefers `ema`.
    """
    copy, keys = copy_in(checkpoint, keys=(*WRAPPERS, "ema"), source=source, wanted=copy)
    weights = unwrap(checkpoint, keys=keys, source=source)
    if "quantize.embedding.weight" not in weights:
        raise CheckpointError(
            f"{source} is not a LlamaGen tokenizer: no quantize.embedding.weight."
        )
    codes, dim = weights["quantize.embedding.weight"].shape
    config = {
        "codebook_size": codes,
        "codebook_embed_dim": dim,
        "z_channels": weights["encoder.conv_out.weight"].shape[0],
        "encoder_ch_mult": _multipliers(weights, "encoder"),
        "decoder_ch_mult": _multipliers(weights, "decoder")[::-1],
        "encoder_kwargs": {
            "ch": weights["encoder.conv_in.weight"].shape[0],
            "num_res_blocks": count(weights, r"encoder\.conv_blocks\.0\.res\.(\d+)\..*"),
        },
        "decoder_kwargs": {
            "ch": weights["encoder.conv_in.weight"].shape[0],
            "num_res_blocks": count(weights, r"decoder\.conv_blocks\.0\.res\.(\d+)\..*") - 1,
        },
    }
    return Imported(
        config=tokenizer_config(config, image_size=image_size),
        weights=tokenizer_weights(weights, source=source),
        source=source,
        copy=copy,
    )


def import_generator(
    checkpoint: Any,
    *,
    source: str,
    image_size: int = 256,
    factor: int = 16,
    heads: int | None = None,
) -> Imported:
    """Import a released c2i or t2i file.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images; with `factor` it gives the code grid.
        factor: the tokenizer's down-sampling.
        heads: attention heads, where the size is not one of the published ones.
    """
    weights = unwrap(checkpoint, keys=WRAPPERS, source=source)
    if "tok_embeddings.weight" not in weights:
        raise CheckpointError(f"{source} is not a LlamaGen generator: no tok_embeddings.weight.")
    vocab, dim = weights["tok_embeddings.weight"].shape
    layers = count(weights, r"layers\.(\d+)\..*")
    heads = heads or HEADS.get((layers, dim))
    if heads is None:
        raise UserError(
            f"{source} has {layers} layers of width {dim}, not a published size; pass heads=N."
        )
    kv = (weights["layers.0.attention.wqkv.weight"].shape[0] - dim) // 2
    text = "cls_embedding.uncond_embedding" in weights
    config: dict[str, Any] = {
        "dim": dim,
        "n_layer": layers,
        "n_head": heads,
        "n_kv_head": kv * heads // dim,
        "vocab_size": vocab,
        "block_size": (image_size // factor) ** 2,
        "model_type": "t2i" if text else "c2i",
    }
    if text:
        null = weights["cls_embedding.uncond_embedding"]
        config |= {"caption_dim": null.shape[1], "cls_token_num": 120, "null_length": null.shape[0]}
    else:
        # Released class-conditional models were trained with label dropout: one row is the null.
        config["num_classes"] = weights["cls_embedding.embedding_table.weight"].shape[0] - 1
    built = generator_config(config)
    built["ffn_hidden"] = weights["layers.0.feed_forward.w1.weight"].shape[0]
    return Imported(built, generator_weights(weights, source=source), source)


def _multipliers(weights: Mapping[str, Tensor], part: str) -> list[int]:
    """Read the width multiplier of each level, in the order the levels run."""
    base = weights["encoder.conv_in.weight"].shape[0]
    levels = count(weights, rf"{part}\.conv_blocks\.(\d+)\..*")
    widths = [weights[f"{part}.conv_blocks.{i}.res.0.conv2.weight"].shape[0] for i in range(levels)]
    return [width // base for width in widths]
