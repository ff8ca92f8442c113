"""VAR (FoundationVision/VAR, MIT, arXiv 2404.02905): multi-scale tokenizer and generator."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.interop.base import Imported, Rule, StateDict, rename, unwrap
from argen.spec import CodeSpec, Segment
from argen.tokenizers.quantizers.multiscale import as_scales

Scale = int | Sequence[int]

SCALES: dict[int, list[int]] = {
    256: [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
    512: [1, 2, 3, 4, 6, 9, 13, 18, 24, 32],
    1024: [1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64],
}

# Our blocks order a modulation's parts shift, scale, gate of the attention, then of the
# feed-forward layer; the reference has gates, then scales, then shifts.
PARTS = torch.tensor([4, 2, 0, 5, 3, 1])

GENERATOR_RULES: list[Rule] = [
    (r"class_emb\.weight", "conditioner.table.weight"),
    (r"pos_start", "pos_start"),
    (r"pos_1LC", "pos"),
    (r"lvl_embed\.weight", "level_embed"),
    (r"word_embed\.(.+)", r"embed.\1"),
    (r"blocks\.(\d+)\.attn\.mat_qkv\.weight", r"blocks.\1.attention.qkv.weight"),
    (r"blocks\.(\d+)\.attn\.([qv]_bias)", r"blocks.\1.attention.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.scale_mul_1H11", r"blocks.\1.attention.q_norm.log_scale"),
    (r"blocks\.(\d+)\.attn\.proj\.(.+)", r"blocks.\1.attention.out.\2"),
    (r"blocks\.(\d+)\.ffn\.(fc[12])\.(.+)", r"blocks.\1.ffn.\2.\3"),
    (r"blocks\.(\d+)\.ada_lin\.1\.(.+)", r"blocks.\1.modulation.proj.\2"),
    (r"blocks\.(\d+)\.ada_gss", r"blocks.\1.offsets"),
    (r"shared_ada_lin\.1\.(.+)", r"shared_modulation.proj.\1"),
    (r"head_nm\.ada_lin\.1\.(.+)", r"norm.modulation.proj.\1"),
    (r"head\.(weight|bias)", r"head.proj.\1"),
    # Buffers that follow from the configuration.
    (r"lvl_1L|attn_bias_for_masking", None),
    (r"blocks\.\d+\.attn\.zero_k_bias", None),
]

PHI = r"quantize\.quant_resi\.(?:qresi_ls\.|qresi\.|)(\d*)\.?(weight|bias)"


def _level(part: str, ours: int, theirs: int) -> list[Rule]:
    """Return the rules of one resolution; the decoder's are numbered from the other end."""
    old = rf"{part}\.(?:down|up)\.{theirs}"
    new = rf"{part}.levels.{ours}"
    return [
        (rf"{old}\.block\.(\d+)\.nin_shortcut\.(.+)", rf"{new}.blocks.\1.shortcut.\2"),
        (rf"{old}\.block\.(\d+)\.(.+)", rf"{new}.blocks.\1.\2"),
        (rf"{old}\.attn\.(\d+)\.proj_out\.(.+)", rf"{new}.attentions.\1.out.\2"),
        (rf"{old}\.attn\.(\d+)\.(.+)", rf"{new}.attentions.\1.\2"),
        (rf"{old}\.(?:down|up)sample\.conv\.(.+)", rf"{new}.resample.conv.\1"),
    ]


def _middle(attention: bool) -> list[Rule]:
    second = 2 if attention else 1
    return [
        (r"(encoder|decoder)\.mid\.block_1\.(.+)", r"\1.middle.0.\2"),
        (r"(encoder|decoder)\.mid\.attn_1\.proj_out\.(.+)", r"\1.middle.1.out.\2"),
        (r"(encoder|decoder)\.mid\.attn_1\.(.+)", r"\1.middle.1.\2"),
        (r"(encoder|decoder)\.mid\.block_2\.(.+)", rf"\1.middle.{second}.\2"),
    ]


def tokenizer_weights(weights: Mapping[str, Tensor], *, source: str = "VAR VQVAE") -> StateDict:
    """Translate a `VQVAE` state dict."""
    levels = _count(weights, r"encoder\.down\.(\d+)\..*")
    rules: list[Rule] = [
        (r"(encoder|decoder)\.(conv_in|conv_out|norm_out)\.(weight|bias)", r"\1.\2.\3"),
        (r"(quant_conv|post_quant_conv)\.(.+)", r"\1.\2"),
        (r"quantize\.embedding\.weight", "quantizer.codebook.weight"),
        (r"quantize\.quant_resi\.qresi\.(.+)", r"quantizer.phis.0.\1"),
        (r"quantize\.quant_resi\.(?:qresi_ls\.)?(\d+)\.(.+)", r"quantizer.phis.\1.\2"),
        (r"quantize\.ema_vocab_hit_SV", "quantizer.hits.average"),
        *_middle(attention=any(key.startswith("encoder.mid.attn_1.") for key in weights)),
    ]
    for level in range(levels):
        rules += _level("encoder", level, level)
        rules += _level("decoder", levels - 1 - level, level)
    renamed = rename(weights, rules, source=source)
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
        image_size: side of the pictures; picks the published pyramid.
        scales: any other pyramid; the weights do not depend on it.
        quant_resi: weight of the smoothing convolutions, invisible in the weights.
        znorm: whether codes are compared by cosine, invisible too.
    """
    weights = unwrap(_trainer(checkpoint), keys=("vae_local",), source=source)
    if "quantize.embedding.weight" not in weights or "encoder.conv_in.weight" not in weights:
        raise CheckpointError(f"{source} is not a VAR tokenizer: no quantize.embedding.weight.")
    if scales is None and image_size not in SCALES:
        known = ", ".join(map(str, SCALES))
        raise UserError(f"No published pyramid ends at {image_size} px ({known}); pass scales.")
    pyramid = SCALES[image_size] if scales is None else list(scales)
    vocab, width = weights["quantize.embedding.weight"].shape
    channels = weights["encoder.conv_in.weight"].shape[0]
    levels = _count(weights, r"encoder\.down\.(\d+)\..*")
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
            "num_res_blocks": _count(weights, r"encoder\.down\.0\.block\.(\d+)\..*"),
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


def generator_weights(weights: Mapping[str, Tensor], *, source: str = "VAR") -> StateDict:
    """Translate a `VAR` state dict."""
    renamed = rename(weights, GENERATOR_RULES, source=source)
    for key, value in renamed.items():
        if re.fullmatch(r"(?:blocks\.\d+\.|shared_)modulation\.proj\.(?:weight|bias)", key):
            renamed[key] = value.unflatten(0, (6, -1))[PARTS].flatten(0, 1)
        elif key.endswith(".offsets"):
            renamed[key] = value[0, 0, PARTS]
        elif key.endswith(".log_scale"):
            renamed[key] = value.flatten()
    return renamed


def generator_config(
    config: Mapping[str, Any], *, vocab_size: int, code_dim: int
) -> dict[str, Any]:
    """Translate the arguments of `VAR`.

    Args:
        config: in the reference's names.
        vocab_size: number of codes of its tokenizer.
        code_dim: latent channels of its tokenizer.
    """
    dim, layers = config["embed_dim"], config["depth"]
    segments = (
        Segment(scale, vocab_sizes=(vocab_size,), dim=code_dim)
        for scale in as_scales(config["patch_nums"])
    )
    return {
        "_target_": "argen.generators.var.VAR",
        "spec": CodeSpec("discrete", tuple(segments)).to_dict(),
        "conditioner": {
            "_target_": "argen.generators.conditioning.ClassConditioner",
            "num_classes": config["num_classes"],
            "dim": dim,
            "drop_rate": config.get("cond_drop_rate", 0.1),
            "null_row": True,
        },
        "dim": dim,
        "layers": layers,
        "heads": config["num_heads"],
        "ffn_ratio": config.get("mlp_ratio", 4.0),
        "norm_eps": config.get("norm_eps", 1e-6),
        "shared_adaln": config.get("shared_aln", False),
        "cosine_attention": config.get("attn_l2_norm", False),
        "residual_dropout": config.get("drop_rate", 0.0),
        "ffn_dropout": config.get("drop_rate", 0.0),
        "attention_dropout": config.get("attn_drop_rate", 0.0),
        "drop_path": config.get("drop_path_rate", 0.0),
    }


def import_generator(
    checkpoint: Any,
    *,
    source: str,
    image_size: int | None = None,
    factor: int = 16,
    heads: int | None = None,
) -> Imported:
    """Import `var_d*.pth`, or the generator of a training checkpoint.

    Args:
        checkpoint: what the file holds; its scales are stored in it.
        source: the file, for messages.
        image_size: side of the pictures it is wanted for, to be refused if it draws others.
        factor: the tokenizer's down-sampling.
        heads: attention heads, where they are not visible and not 64 wide as the published ones.
    """
    weights = unwrap(_trainer(checkpoint), keys=("var_wo_ddp",), source=source)
    for key in ("word_embed.weight", "pos_1LC", "lvl_1L"):
        if key not in weights:
            raise CheckpointError(f"{source} is not a VAR generator: no {key}.")
    dim, code_dim = weights["word_embed.weight"].shape
    layers = _count(weights, r"blocks\.(\d+)\..*")
    counts = weights["lvl_1L"].flatten().bincount().tolist()
    sides = [round(count**0.5) for count in counts]
    if any(side * side != count for side, count in zip(sides, counts)):
        raise CheckpointError(f"{source}: scales of {counts} codes are not square.")
    if image_size is not None and image_size != sides[-1] * factor:
        raise UserError(
            f"{source} draws pictures of {sides[-1] * factor} px, not {image_size}: set "
            f"image_size={sides[-1] * factor}."
        )
    temperature = weights.get("blocks.0.attn.scale_mul_1H11")
    if heads is None:
        heads = dim // 64 if temperature is None else temperature.numel()
    config = {
        "embed_dim": dim,
        "depth": layers,
        "num_heads": heads,
        "num_classes": weights["class_emb.weight"].shape[0] - 1,
        "mlp_ratio": weights["blocks.0.ffn.fc1.weight"].shape[0] / dim,
        "shared_aln": "shared_ada_lin.1.weight" in weights,
        "attn_l2_norm": temperature is not None,
        "patch_nums": sides,
        # The published rule.
        "drop_path_rate": 0.1 * layers / 24,
    }
    translated = generator_weights(weights, source=source)
    vocab_size = weights["head.weight"].shape[0]
    built = generator_config(config, vocab_size=vocab_size, code_dim=code_dim)
    return Imported(built, translated, source)


def _trainer(checkpoint: Any) -> Any:
    """Return the part of a training checkpoint that holds the networks."""
    inside = checkpoint.get("trainer") if isinstance(checkpoint, Mapping) else None
    return inside if isinstance(inside, Mapping) else checkpoint


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """Return one more than the largest number a key pattern captures."""
    found = [int(m.group(1)) for key in weights if (m := re.fullmatch(pattern, key))]
    if not found:
        raise CheckpointError(f"No key matches {pattern}; this is a checkpoint of another model.")
    return max(found) + 1
