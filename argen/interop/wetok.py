"""WeTok (zhuangshaobin/WeTok, no licence stated, arXiv 2508.05599): LFQ in groups of bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.errors import UserError
from argen.interop import open_magvit2
from argen.interop.base import Imported, StateDict
from argen.interop.open_magvit2_ar import import_generator as import_generator

SOURCE = "wetok"


def tokenizer_weights(
    weights: Mapping[str, Tensor], *, source: str = "WeTok", ema: bool = False
) -> StateDict:
    """Translate the state dict of a `VQModel`, or its averaged copies."""
    return open_magvit2.tokenizer_weights(weights, source=source, ema=ema)


def tokenizer_config(config: Mapping[str, Any], *, image_size: int | list[int]) -> dict[str, Any]:
    """Translate the constructor arguments of `VQModel`.

    `num_codebooks` groups of log2(`n_embed`) bits; `use_GFQ` with `token_factorization` cuts the
    same bits into the sub-tokens `factorized_bits`.
    """
    groups = config.get("num_codebooks", 1)
    if config.get("token_factorization") and groups > 1 and not config.get("use_GFQ"):
        raise UserError("WeTok factorises tokens of several groups with use_GFQ=true only.")
    return open_magvit2.tokenizer_config(config, image_size=image_size, groups=groups)


def import_tokenizer(
    checkpoint: Any,
    *,
    source: str,
    image_size: int = 256,
    ema: bool | None = None,
    group_bits: int = 8,
) -> Imported:
    """Import a released `.ckpt`; sizes and the kind of decoder are read off the weights.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images.
        ema: take the averaged copies; by default where the file has any.
        group_bits: bits of a group, which the weights do not show; 8 in all released files.
    """
    weights, ema = open_magvit2.read(checkpoint, source=source, ema=ema)
    config = open_magvit2.read_config(weights)
    bits = config["embed_dim"]
    if bits % group_bits:
        raise UserError(f"{source} has {bits} bits, no multiple of group_bits={group_bits}.")
    config |= {"n_embed": 2**group_bits, "num_codebooks": bits // group_bits}
    return Imported(
        config=tokenizer_config(config, image_size=image_size),
        weights=tokenizer_weights(weights, source=source, ema=ema),
        source=source,
        copy=open_magvit2.named_copy(weights, ema=ema),
    )
