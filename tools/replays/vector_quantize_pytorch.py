"""vector-quantize-pytorch (lucidrains, MIT): its quantisers' options and keys in argen's terms.

Losses come back by name and unweighted; `loss_weights` gives the library's own weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from argen.errors import UserError
from argen.interop.base import Rule, StateDict, rename

QUANTIZERS = "argen.tokenizers.quantizers"

# Options that change nothing about codes, gradients or weights.
HARMLESS = {
    "accept_image_fmap", "accept_3d_fmap", "channel_last", "channel_first", "return_indices",
    "keep_num_codebooks_dim", "allowed_dtypes", "force_quantization_f32", "sync_codebook",
    "sync_kmeans", "return_zeros_for_masked_padding", "reset_cluster_size",
}  # fmt: skip
KNOWN = {
    "VectorQuantize": {
        "dim", "codebook_size", "codebook_dim", "heads", "separate_codebook_per_head", "decay",
        "eps", "kmeans_init", "kmeans_iters", "use_cosine_sim", "threshold_ema_dead_code",
        "commitment_weight", "rotation_trick", "ema_update", "learnable_codebook",
    },
    "ResidualVQ": {
        "dim", "num_quantizers", "codebook_size", "codebook_dim", "shared_codebook",
        "quantize_dropout", "decay", "eps", "kmeans_init", "kmeans_iters", "use_cosine_sim",
        "threshold_ema_dead_code", "commitment_weight", "rotation_trick", "ema_update",
        "learnable_codebook",
    },
    "FSQ": {"levels", "dim", "num_codebooks", "projection_has_bias", "preserve_symmetry"},
    "LFQ": {
        "dim", "codebook_size", "entropy_loss_weight", "commitment_loss_weight", "diversity_gamma",
        "num_codebooks", "codebook_scale", "has_projections", "projection_has_bias", "spherical",
        "soft_clamp_input_value",
    },
    "SimVQ": {
        "dim", "codebook_size", "rotation_trick", "input_to_quantize_commit_loss_weight",
        "commitment_weight", "frozen_codebook_dim",
    },
}  # fmt: skip
OFF = (None, False, 0, 0.0, "")  # values that switch an option off


def kind(name: str) -> str:
    """Return the library's class in a name such as `LFQ with spherical=True (BSQ)`."""
    found = re.match(r"[A-Za-z]+", name)
    if found is None or found[0] not in KNOWN:
        raise UserError(f"{name!r} is not one of {', '.join(KNOWN)}.")
    return found[0]


def _check(name: str, config: Mapping[str, Any]) -> None:
    for option, value in config.items():
        whole = (option, value) == ("frac_per_sample_entropy", 1)
        if not (option in KNOWN[name] | HARMLESS or value in OFF or whole):
            raise UserError(f"{name}'s option {option}={value!r} has no counterpart here.")


def quantizer_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the constructor arguments of a library class.

    Args:
        name: the class, e.g. `VectorQuantize`, `ResidualVQ`, `FSQ`, `LFQ` or `SimVQ`.
        config: its keyword arguments.
    """
    name = kind(name)
    _check(name, config)
    made = _MAKERS[name](config)
    inner, dim = _width(made), config.get("dim") or _width(made)
    if inner == dim and not config.get("has_projections"):
        return made
    return {
        "_target_": f"{QUANTIZERS}.projected.Projected",
        "quantizer": made,
        "dim": dim,
        "bias": config.get("projection_has_bias", True),
    }


def _width(made: Mapping[str, Any]) -> int:
    """Return the width of a translated quantiser."""
    if "levels" in made and isinstance(made["levels"][0], int):
        return len(made["levels"]) * made["groups"]
    if "bits" in made:
        return made["bits"]
    if "quantizers" in made:
        return sum(q["dim"] for q in made["quantizers"]) * (made["shared"] or 1)
    return made["levels"][0]["dim"] if "levels" in made else made["dim"]


def _gradient(config: Mapping[str, Any], dim: int) -> str:
    trick = config.get("rotation_trick")
    return "rotation" if (dim > 1 if trick is None else trick) else "straight_through"


def _codebook(config: Mapping[str, Any], codes: int, dim: int, whole: int) -> dict[str, Any]:
    """Translate one codebook; `whole` is the width that decides the default gradient."""
    learnable = bool(config.get("learnable_codebook"))
    if learnable and config.get("ema_update") is not False:
        raise UserError("learnable_codebook=True needs ema_update=False.")
    if not learnable and config.get("ema_update") is False:
        raise UserError("ema_update=False without learnable_codebook=True freezes the codebook.")
    made: dict[str, Any] = {
        "codes": codes,
        "dim": dim,
        "l2_norm": config.get("use_cosine_sim", False),
        "gradient": _gradient(config, whole),
        "kmeans_steps": config.get("kmeans_iters", 10) if config.get("kmeans_init") else 0,
        "revive_below": config.get("threshold_ema_dead_code", 0),
    }
    if learnable:
        return {"_target_": f"{QUANTIZERS}.vq.VQ", **made}
    return {
        "_target_": f"{QUANTIZERS}.ema.EMAVQ",
        **made,
        "decay": config.get("decay", 0.8),
        "eps": config.get("eps", 1e-5),
    }


def _vector(config: Mapping[str, Any]) -> dict[str, Any]:
    heads, whole = config.get("heads", 1), config["dim"]
    dim = config.get("codebook_dim") or whole
    one = _codebook(config, config["codebook_size"], dim, whole)
    if heads == 1:
        return one
    apart = config.get("separate_codebook_per_head", False)
    return {
        "_target_": f"{QUANTIZERS}.grouped.Grouped",
        "quantizers": [one] * heads if apart else [one],
        "shared": 0 if apart else heads,
    }


def _residual(config: Mapping[str, Any]) -> dict[str, Any]:
    sizes = config["codebook_size"]
    sizes = sizes if isinstance(sizes, list | tuple) else [sizes] * config["num_quantizers"]
    dim = config.get("codebook_dim") or config["dim"]
    levels = [_codebook(config, size, dim, dim) for size in sizes]
    shared = config.get("shared_codebook", False)
    return {
        "_target_": f"{QUANTIZERS}.residual.Residual",
        "levels": levels[:1] if shared else levels,
        "shared": len(levels) if shared else 0,
        "gradient": "level",
        "dropout": 1.0 if config.get("quantize_dropout") else 0.0,
    }


def _fsq(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "_target_": f"{QUANTIZERS}.fsq.FSQ",
        "levels": list(config["levels"]),
        "symmetric": config.get("preserve_symmetry", False),
        "groups": config.get("num_codebooks", 1),
    }


def _lfq(config: Mapping[str, Any]) -> dict[str, Any]:
    groups = config.get("num_codebooks", 1)
    codes = config.get("codebook_size") or 2 ** config["dim"]
    bits = round(math.log2(codes))
    return {
        "_target_": f"{QUANTIZERS}.lfq.{'BSQ' if config.get('spherical') else 'LFQ'}",
        "bits": bits * groups,
        "groups": groups,
        "first_bit": "highest",
        "scale": config.get("codebook_scale", 1.0),
        "temperature": 0.01,
        "batch_entropy": "group",
        "clamp_log": True,
        "soft_clamp": config.get("soft_clamp_input_value"),
    }


def _sim(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "_target_": f"{QUANTIZERS}.simvq.SimVQ",
        "codes": config["codebook_size"],
        "dim": config["dim"],
        "base_dim": config.get("frozen_codebook_dim"),
        "gradient": "rotation" if config.get("rotation_trick", True) else "straight_through",
    }


_MAKERS = {
    "VectorQuantize": _vector,
    "ResidualVQ": _residual,
    "FSQ": _fsq,
    "LFQ": _lfq,
    "SimVQ": _sim,
}


def loss_weights(name: str, config: Mapping[str, Any]) -> dict[str, float]:
    """Return the weights with which the library sums our named losses into its one."""
    name = kind(name)
    if name == "LFQ":
        entropy = config.get("entropy_loss_weight", 0.1)
        return {
            "sample_entropy": entropy,
            "batch_entropy": -entropy * config.get("diversity_gamma", 1.0),
            "commitment": config.get("commitment_loss_weight", 0.0),
        }
    weight = config.get("commitment_weight", 1.0)
    if name == "SimVQ":
        inward = config.get("input_to_quantize_commit_loss_weight", 0.25)
        return {"codebook": weight, "commitment": weight * inward}
    return {"commitment": weight}


_PROJECTIONS: list[Rule] = [(r"project_in\.(.+)", r"into.\1"), (r"project_out\.(.+)", r"back.\1")]
_OTHERS: list[Rule] = [
    (r"mask", None),
    (r"frozen_codebook", "base"),
    (r"code_transform\.weight", "transform.weight"),
]
_CODEBOOK = {"embed": "codebook", "cluster_size": "count", "embed_avg": "total"}


def quantizer_weights(
    name: str,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    source: str = "vector-quantize-pytorch",
) -> StateDict:
    """Translate a quantiser's state dict."""
    name = kind(name)
    made = quantizer_config(name, config)
    projected = "quantizer" in made
    inner = made["quantizer"] if projected else made
    outer = {k: v for k, v in weights.items() if k.startswith("project_")}
    rest = {k: v for k, v in weights.items() if k not in outer}
    if name in ("VectorQuantize", "ResidualVQ"):
        found = _codebook_weights(rest, inner, source=source)
    else:
        found = rename(rest, _OTHERS, source=source)
    prefix = "quantizer." if projected else ""
    found = {f"{prefix}{k}": v for k, v in found.items()}
    return found | rename(outer, _PROJECTIONS, source=source)


def _codebook_weights(
    weights: Mapping[str, Tensor], made: Mapping[str, Any], *, source: str
) -> StateDict:
    """Translate codebooks: (heads, K, C) tables, one of them a level."""
    found: StateDict = {}
    for key, value in weights.items():
        match = re.fullmatch(r"(?:layers\.(\d+)\.)?_codebook\.(\w+)", key)
        if match is None or match[2] not in (*_CODEBOOK, "initted"):
            raise UserError(f"{source}: the key {key} has no counterpart here.")
        level, leaf = match[1], match[2]
        if level is not None:
            one = made["levels"][0]
            if made["shared"] and level != "0":
                continue
            prefixes = [f"levels.{level}."]
        elif "quantizers" in made:
            one = made["quantizers"][0]
            prefixes = [f"quantizers.{i}." for i in range(len(made["quantizers"]))]
        else:
            one, prefixes = made, [""]
        gradient = one["_target_"].endswith(".VQ")
        if leaf == "initted":
            if one["kmeans_steps"]:
                found |= {f"{p}initialised": value for p in prefixes}
            continue
        if gradient and (
            leaf == "embed_avg" or (leaf == "cluster_size" and not one["revive_below"])
        ):
            continue
        ours = "codebook.weight" if gradient and leaf == "embed" else _CODEBOOK[leaf]
        for head, prefix in enumerate(prefixes):
            found[f"{prefix}{ours}"] = value[head]
    return found


def reference_state(module: torch.nn.Module) -> StateDict:
    """Return a module's codebooks under the library's keys, as (heads, K, C) tables."""
    state = {k.removeprefix("quantizer."): v for k, v in module.state_dict().items()}
    heads: dict[str, list[Tensor]] = {}
    names = {ours: theirs for theirs, ours in _CODEBOOK.items()} | {"codebook.weight": "embed"}
    for key, value in state.items():
        match = re.fullmatch(
            r"(?:(levels|quantizers)\.(\d+)\.)?(codebook|count|total|codebook\.weight)", key
        )
        if match is None:
            continue
        layer = f"layers.{match[2]}." if match[1] == "levels" else ""
        heads.setdefault(f"{layer}_codebook.{names[match[3]]}", []).append(value)
    return {key: torch.stack(values) for key, values in heads.items()}
