"""VA-VAE (hustvl/LightningDiT, MIT, arXiv 2501.01423): a KL autoencoder with measured latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError
from argen.interop.base import Imported, unwrap
from argen.interop.mar_klvae import WRAPPERS, config_of, tokenizer_weights

SOURCE = "va_vae"

PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")


def import_tokenizer(
    checkpoint: Any,
    *,
    source: str,
    image_size: int = 256,
    statistics: Mapping[str, Tensor] | None = None,
) -> Imported:
    """Import `vavae-imagenet256-f16d32-dinov2.pt` or a variant of another width.

    Args:
        checkpoint: what the file holds; the loss networks in it are left out.
        source: the file, for messages.
        image_size: side of the images.
        statistics: `mean` and `std` of the latents, from the published `latents_stats.pt`;
            without it they are 0 and 1, and `KLTokenizer.measure` finds them.
    """
    weights = unwrap(checkpoint, keys=WRAPPERS, source=source)
    weights = {k: v for k, v in weights.items() if k.startswith(PARTS)}
    config = config_of(weights, image_size=image_size, source=source, scale=1.0)
    like = weights["post_quant_conv.weight"]
    mean, std = like.new_zeros(1), like.new_ones(1)
    if statistics is not None:
        mean, std = statistics["mean"].flatten(), statistics["std"].flatten()
        if {mean.numel(), std.numel()} - {1, like.shape[1]}:
            raise CheckpointError(
                f"The statistics have {mean.numel()} channels, {source} has {like.shape[1]}."
            )
    return Imported(config, tokenizer_weights(weights, mean=mean, std=std, source=source), source)
