"""IBQ (TencentARC/SEED-Voken, Apache-2.0, arXiv 2412.02692): the index-backpropagation tokenizer.

The network is taming's VQGAN, key by key; only the quantiser differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.interop.base import Imported, StateDict, unwrap
from argen.interop.ibq_ar import import_generator as import_generator
from argen.interop.taming import tokenizer as taming

SOURCE = "ibq"


def tokenizer_weights(
    weights: Mapping[str, Tensor], *, source: str = "IBQ", ema: bool = False
) -> StateDict:
    """Translate the state dict of an `IBQ`, or its averaged copies."""
    return taming.tokenizer_weights(taming.ema_weights(weights) if ema else weights, source=source)


def tokenizer_config(config: Mapping[str, Any], *, image_size: int | list[int]) -> dict[str, Any]:
    """Translate the constructor arguments of `IBQ`.

    `l2_normalize`, `cosine_similarity` and `remap` are accepted by the reference without effect.
    """
    return taming.tokenizer_config(config, image_size=image_size) | {
        "quantizer": {
            "_target_": "argen.tokenizers.quantizers.ibq.IBQ",
            "codes": config["n_embed"],
            "dim": config["embed_dim"],
            "entropy": config.get("use_entropy_loss", False),
            "entropy_temperature": config.get("entropy_temperature", 0.01),
        }
    }


def loss_weights(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the weights of the quantiser's named losses within the reference's two sums.

    The reference's `beta` is on the codebook's side, against the habit.
    """
    return {
        "index": 1.0,
        "commitment": 1.0,
        "codebook": config.get("beta", 0.25),
        "sample_entropy": config.get("sample_minimization_weight", 1.0),
        "batch_entropy": -config.get("batch_maximization_weight", 1.0),
    }


def import_tokenizer(
    checkpoint: Any, *, source: str, image_size: int = 256, ema: bool | None = None
) -> Imported:
    """Import a released `.ckpt`; every size is read off the weights.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images.
        ema: take the averaged copies; by default where the file has any, as the released
            evaluation does.
    """
    weights = unwrap(checkpoint, keys=taming.WRAPPERS, source=source)
    averaged = any(k.startswith("model_ema.") for k in weights)
    plain = taming.import_tokenizer(
        checkpoint, source=source, image_size=image_size, ema=averaged if ema is None else ema
    )
    codes, dim = plain.weights["quantizer.codebook.weight"].shape
    quantizer = {
        "_target_": "argen.tokenizers.quantizers.ibq.IBQ",
        "codes": codes,
        "dim": dim,
    }
    return Imported(plain.config | {"quantizer": quantizer}, plain.weights, source, plain.copy)
