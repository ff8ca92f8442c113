"""MaskGIT-VQGAN (google-research/maskgit, arXiv 2202.04200) as ported by bytedance/1d-tokenizer.

Both are Apache-2.0. The networks work on images in [0, 1]; argen's tokenizer, as all, on [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError
from argen.interop.base import (
    Imported,
    Rule,
    StateDict,
    count,
    rename,
    reverse_levels,
    unwrap,
)

SOURCE = "maskgit_vqgan"

WRAPPERS = ("state_dict", "model")
BETA = 0.25

_BLOCK = r"(norm1|norm2|conv1|conv2)\.(weight|bias)"

CNN_RULES: list[Rule] = [
    (r"(encoder|decoder)\.(conv_in|conv_out|norm_out)\.(weight|bias)", r"\1.\2.\3"),
    (
        rf"(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.(\d+)\.{_BLOCK}",
        r"\1.levels.\2.blocks.\3.\4.\5",
    ),
    (
        r"(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.(\d+)\.nin_shortcut\.weight",
        r"\1.levels.\2.blocks.\3.shortcut.weight",
    ),
    (r"decoder\.up\.(\d+)\.upsample_conv\.(weight|bias)", r"decoder.levels.\1.resample.conv.\2"),
    (rf"(encoder|decoder)\.mid\.(\d+)\.{_BLOCK}", r"\1.middle.\2.\3.\4"),
    (r"quantize\.embedding\.weight", "quantizer.codebook.weight"),
]


def tokenizer_weights(weights: Mapping[str, Tensor], *, source: str = "MaskGIT-VQGAN") -> StateDict:
    """Translate a `PretrainedTokenizer` state dict."""
    return reverse_levels(rename(weights, CNN_RULES, source=source))


def decoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the part of the configuration that shapes the decoder."""
    return {
        "_target_": "argen.tokenizers.cnn.Decoder",
        **_shared(config),
        "in_channels": config["z_channels"],
        "out_channels": config.get("num_channels", 3),
    }


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "channels": config["hidden_channels"],
        "multipliers": list(config["channel_mult"]),
        "blocks": config["num_res_blocks"],
        "middle_blocks": config["num_res_blocks"],
        "middle_attention": False,
        "bias": False,
        "shortcut": "branch",
        "dropout": config.get("dropout", 0.0),
    }


def tokenizer_config(config: Mapping[str, Any], *, image_size: int | list[int]) -> dict[str, Any]:
    """Translate the configuration, which the reference fixes inside its class."""
    return {
        "_target_": "argen.tokenizers.cnn.CNNTokenizer",
        "image_size": image_size,
        "projection": False,
        "unit_range": True,
        "encoder": {
            "_target_": "argen.tokenizers.cnn.Encoder",
            **_shared(config),
            "out_channels": config["z_channels"],
            "in_channels": config.get("num_channels", 3),
            "downsample": "average",
            "out_kernel": 1,
        },
        "decoder": decoder_config(config),
        "quantizer": {
            "_target_": "argen.tokenizers.quantizers.vq.VQ",
            "codes": config["num_embeddings"],
            "dim": config["embedding_dim"],
        },
    }


def loss_weights(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the weights of the quantiser's named losses: beta sits on the codebook's side."""
    return {"codebook": config.get("commitment_cost", BETA), "commitment": 1.0}


def import_tokenizer(checkpoint: Any, *, source: str, image_size: int = 256) -> Imported:
    """Import `maskgit-vqgan-imagenet-f16-256.bin`; every width is read off the weights."""
    weights = unwrap(checkpoint, keys=WRAPPERS, source=source)
    if "quantize.embedding.weight" not in weights or "encoder.mid.0.norm1.weight" not in weights:
        raise CheckpointError(
            f"{source} is not a MaskGIT-VQGAN: no quantize.embedding.weight and encoder.mid.0; "
            "for a file with encoder.mid.block_1 use the taming importer."
        )
    codes, dim = weights["quantize.embedding.weight"].shape
    base = weights["encoder.conv_in.weight"].shape[0]
    depth = count(weights, r"encoder\.down\.(\d+)\..+")
    widths = [weights[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(depth)]
    config = {
        "hidden_channels": base,
        "channel_mult": [width // base for width in widths],
        "num_res_blocks": count(weights, r"encoder\.down\.0\.block\.(\d+)\..+"),
        "z_channels": weights["encoder.conv_out.weight"].shape[0],
        "num_channels": weights["encoder.conv_in.weight"].shape[1],
        "num_embeddings": codes,
        "embedding_dim": dim,
    }
    return Imported(
        config=tokenizer_config(config, image_size=image_size),
        weights=tokenizer_weights(weights, source=source),
        source=source,
    )
