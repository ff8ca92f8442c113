"""VAR's multi-scale tokenizer (FoundationVision/VAR, MIT, arXiv 2404.02905)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.interop.base import (
    Imported,
    Rule,
    StateDict,
    count,
    rename,
    reverse_levels,
    unwrap,
)
from argen.tokenizers.quantizers.multiscale import as_scales

SOURCE = "var_vqvae"

Scale = int | Sequence[int]

SCALES: dict[int, list[int]] = {
    256: [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
    512: [1, 2, 3, 4, 6, 9, 13, 18, 24, 32],
    1024: [1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64],
}

LEVEL = r"(encoder|decoder)\.(?:down|up)\.(\d+)"
RULES: list[Rule] = [
    (r"(encoder|decoder)\.(conv_in|conv_out|norm_out)\.(weight|bias)", r"\1.\2.\3"),
    (rf"{LEVEL}\.block\.(\d+)\.nin_shortcut\.(.+)", r"\1.levels.\2.blocks.\3.shortcut.\4"),
    (rf"{LEVEL}\.block\.(\d+)\.(.+)", r"\1.levels.\2.blocks.\3.\4"),
    (rf"{LEVEL}\.attn\.(\d+)\.proj_out\.(.+)", r"\1.levels.\2.attentions.\3.out.\4"),
    (rf"{LEVEL}\.attn\.(\d+)\.(.+)", r"\1.levels.\2.attentions.\3.\4"),
    (rf"{LEVEL}\.(?:down|up)sample\.conv\.(.+)", r"\1.levels.\2.resample.conv.\3"),
    (r"(encoder|decoder)\.mid\.block_1\.(.+)", r"\1.middle.0.\2"),
    (r"(encoder|decoder)\.mid\.attn_1\.proj_out\.(.+)", r"\1.middle.1.out.\2"),
    (r"(encoder|decoder)\.mid\.attn_1\.(.+)", r"\1.middle.1.\2"),
    (r"(quant_conv|post_quant_conv)\.(.+)", r"\1.\2"),
    (r"quantize\.embedding\.weight", "quantizer.codebook.weight"),
    (r"quantize\.quant_resi\.qresi\.(.+)", r"quantizer.phis.0.\1"),
    (r"quantize\.quant_resi\.(?:qresi_ls\.)?(\d+)\.(.+)", r"quantizer.phis.\1.\2"),
    (r"quantize\.ema_vocab_hit_SV", "quantizer.hits.average"),
]

PHI = r"quantize\.quant_resi\.(?:qresi_ls\.|qresi\.|)(\d*)\.?(weight|bias)"


def tokenizer_weights(weights: Mapping[str, Tensor], *, source: str = "VAR VQVAE") -> StateDict:
    """Translate a `VQVAE` state dict."""
    # The second block of the middle stands behind its attention, where there is one.
    second = 2 if any(key.startswith("encoder.mid.attn_1.") for key in weights) else 1
    last = (r"(encoder|decoder)\.mid\.block_2\.(.+)", rf"\1.middle.{second}.\2")
    renamed = reverse_levels(rename(weights, [*RULES, last], source=source))
    # The published counter of updates is no part of the file: it starts again at nought.
    renamed["quantizer.hits.updates"] = torch.zeros((), dtype=torch.long)
    return renamed


def tokenizer_config(
    config: Mapping[str, Any], *, scales: Sequence[Scale] | None = None
) -> dict[str, Any]:
    """Translate the arguments of `VQVAE`; its fixed widths may be overridden.

    Args:
        config: in the reference's names, `hard_coded_in_reference` for what it fixes inside.
        scales: another pyramid than `v_patch_nums`.
    """
    fixed = config.get("hard_coded_in_reference", {})
    multipliers = list(fixed.get("ch_mult", [1, 1, 2, 2, 4]))
    pyramid = as_scales(config["v_patch_nums"] if scales is None else scales)
    factor, width = 2 ** (len(multipliers) - 1), config.get("z_channels", 32)
    network = {
        "channels": config.get("ch", 128),
        "multipliers": multipliers,
        "attention_levels": [-1] if fixed.get("using_sa", True) else [],
        "middle_attention": fixed.get("using_mid_sa", True),
        "dropout": config.get("dropout", 0.0),
        "norm_groups": fixed.get("group_norm_groups", 32),
    }
    blocks = fixed.get("num_res_blocks", 2)
    ratio = abs(config.get("quant_resi", 0.5))
    phis = config.get("share_quant_resi", 4)
    if phis == 0:
        phis = config.get("default_qresi_counts", 0) or len(config["v_patch_nums"])
    return {
        "_target_": "argen.tokenizers.multiscale.MultiScaleTokenizer",
        "image_size": [side * factor for side in pyramid[-1]],
        "kernel": config.get("quant_conv_ks", 3),
        "encoder": {
            "_target_": "argen.tokenizers.cnn.Encoder",
            **network,
            "blocks": blocks,
            "out_channels": width,
        },
        "decoder": {
            "_target_": "argen.tokenizers.cnn.Decoder",
            **network,
            "blocks": blocks + 1,
            "in_channels": width,
        },
        "quantizer": {
            "_target_": "argen.tokenizers.quantizers.multiscale.MultiScaleVQ",
            "codes": config["vocab_size"],
            "dim": width,
            "scales": [list(scale) for scale in pyramid],
            "phis": phis,
            # Below this the published code has no convolution at all.
            "phi_ratio": ratio if ratio > 1e-6 else 0.0,
            "cosine": config.get("using_znorm", False),
            "hit_counter": "scale",
        },
    }


def loss_weights(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the weights of the quantiser's named losses."""
    return {"codebook": 1.0, "commitment": config.get("beta", 0.25)}


def import_tokenizer(
    checkpoint: Any,
    *,
    source: str,
    image_size: int = 256,
    scales: Sequence[Scale] | None = None,
    quant_resi: float = 0.5,
    znorm: bool = False,
) -> Imported:
    """Import `vae_ch160v4096z32.pth`, or the tokenizer of a training checkpoint.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images; picks the published pyramid.
        scales: any other pyramid; the weights do not depend on it.
        quant_resi: weight of the smoothing convolutions, invisible in the weights.
        znorm: whether codes are compared by cosine, invisible too.
    """
    weights = unwrap(inside(checkpoint), keys=("vae_local",), source=source)
    if "quantize.embedding.weight" not in weights or "encoder.conv_in.weight" not in weights:
        raise CheckpointError(f"{source} is not a VAR tokenizer: no quantize.embedding.weight.")
    if scales is None and image_size not in SCALES:
        known = ", ".join(map(str, SCALES))
        raise UserError(f"No published pyramid ends at {image_size} px ({known}); pass scales.")
    pyramid = SCALES[image_size] if scales is None else list(scales)
    vocab, width = weights["quantize.embedding.weight"].shape
    channels = weights["encoder.conv_in.weight"].shape[0]
    levels = count(weights, r"encoder\.down\.(\d+)\..*")
    numbered = [m for key in weights if (m := re.fullmatch(PHI, key))]
    config = {
        "vocab_size": vocab,
        "z_channels": width,
        "ch": channels,
        "using_znorm": znorm,
        "quant_conv_ks": weights["quant_conv.weight"].shape[-1],
        "quant_resi": quant_resi if numbered else 0.0,
        "share_quant_resi": 1 + max((int(m.group(1) or 0) for m in numbered), default=0),
        "v_patch_nums": pyramid,
        "hard_coded_in_reference": {
            "ch_mult": [
                weights[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] // channels
                for i in range(levels)
            ],
            "num_res_blocks": count(weights, r"encoder\.down\.0\.block\.(\d+)\..*"),
            "using_sa": any(".attn." in key for key in weights),
            "using_mid_sa": "encoder.mid.attn_1.norm.weight" in weights,
        },
    }
    translated = tokenizer_weights(weights, source=source)
    hits = translated.get("quantizer.hits.average")
    if hits is None or hits.shape[0] != len(pyramid):
        # Statistics of another pyramid, or none: they start again with the next training.
        translated["quantizer.hits.average"] = torch.zeros(len(pyramid), vocab)
    return Imported(tokenizer_config(config), translated, source)


def inside(checkpoint: Any) -> Any:
    """Return the part of a training checkpoint that holds the networks."""
    inside = checkpoint.get("trainer") if isinstance(checkpoint, Mapping) else None
    return inside if isinstance(inside, Mapping) else checkpoint
