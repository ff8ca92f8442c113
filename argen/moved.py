"""Names that moved: what YAML and saved models call by the names of an earlier version.

Each is taken for one minor version, with a `DeprecationWarning` that names the new one. Settings of
the command line are in `argen.runtime.renamed`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from argen.errors import UserError

TARGET = "_target_"

# Where lay, before 0.2, what YAML can name: modules, or single names of them. Taken until 0.3.
MOVED = {
    "argen.decoding.jacobi": "argen.decoding.speculative.jacobi",
    "argen.decoding.jacobi.Grouped": "argen.decoding.speculative.jacobi.GroupedJacobi",
    "argen.decoding.proactive": "argen.decoding.speculative.proactive",
    "argen.decoding.relaxed": "argen.decoding.speculative.relaxed",
    "argen.decoding.speculative.jacobi.Grouped": "argen.decoding.speculative.jacobi.GroupedJacobi",
    "argen.foundation": "argen.objectives.alignment",
    "argen.generators.bert": "argen.generators.maskgit.bert",
    "argen.generators.diffusion_head": "argen.generators.heads.diffusion",
    "argen.generators.feature_drafter": "argen.generators.drafter.feature_drafter",
    "argen.generators.flow_head": "argen.generators.heads.flow",
    "argen.generators.subtoken_heads": "argen.generators.heads.subtoken",
    "argen.generators.table": "argen.testing.table",
    "argen.generators.token_conditioning": "argen.generators.net2net.token_conditioning",
    "argen.generators.uvit": "argen.generators.maskgit.uvit",
    "argen.judge": "argen.objectives.feature_discriminator",
    "argen.objectives.losses.LeCam": "argen.objectives.regularizers.LeCam",
    "argen.perceptual": "argen.objectives.perceptual",
    "argen.tokenizers.alignment": "argen.objectives.alignment",
    "argen.tokenizers.diffaugment": "argen.objectives.diffaugment",
    "argen.tokenizers.dino": "argen.pretrained.dino",
    "argen.tokenizers.discriminators": "argen.objectives.discriminators",
    "argen.tokenizers.feature_discriminator": "argen.objectives.feature_discriminator",
    "argen.tokenizers.losses.LeCam": "argen.objectives.regularizers.LeCam",
    "argen.tokenizers.lpips": "argen.pretrained.vgg_lpips",
    "argen.tokenizers.objective": "argen.objectives.objective",
    "argen.tokenizers.perceptual": "argen.pretrained.tapped",
    "argen.tokenizers.perceptual.ConvNeXtDistance": "argen.objectives.perceptual.ConvNeXtDistance",
    "argen.tokenizers.perceptual.FeatureDistance": "argen.objectives.perceptual.FeatureDistance",
}

# Path of a class: old name of an argument: new name. Taken until 0.3 as well.
RENAMED: dict[str, dict[str, str]] = {
    "argen.training.optim.Optim": {
        "final": "min_lr_ratio",
        "plateau": "hold",
        "stair": "gamma",
    },
    "argen.decoding.confidence.Confidence": {"randomize": "choice_temperature"},
    "argen.objectives.objective.Objective": {"perceptual": "image_terms"},
}

# Path of a class: the class that has one of its arguments now. Taken until 0.3 as well.
WITH_ADALN = {
    "argen.generators.gpt.GPT": "argen.generators.adaln_gpt.AdaLNGPT",
    "argen.generators.subtoken.SubTokenGPT": "argen.generators.adaln_gpt.AdaLNSubTokenGPT",
}
ADALN = {"adaln_init": "init_modulation", "adaln_gate_init": "init_gate"}


def current_path(path: str) -> str:
    """Return where the class or function at a dotted path lies today.

    A path of an earlier version is translated, with a `DeprecationWarning` that names the new one.
    """
    module, _, name = path.rpartition(".")
    new = MOVED.get(path) or (f"{MOVED[module]}.{name}" if module in MOVED else path)
    if new != path:
        warnings.warn(f"{path} is now {new}; the old path ends with 0.3.", DeprecationWarning, 2)
    return new


def current_config(config: Any) -> Any:
    """Return a plain configuration with the paths and argument names of today."""
    if isinstance(config, Mapping):
        items = {key: current_config(value) for key, value in config.items()}
        if isinstance(config.get(TARGET), str):
            items[TARGET] = current_path(config[TARGET])
            return current_arguments(items)
        return items
    if isinstance(config, list | tuple):
        return [current_config(value) for value in config]
    return config


def current_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node whose `_target_` is a path of today with the argument names of today."""
    items = dict(config)
    for old, new in RENAMED.get(items[TARGET], {}).items():
        if old in items:
            warnings.warn(
                f"{items[TARGET]}: {old} is now {new}; the old name ends with 0.3.",
                DeprecationWarning,
                2,
            )
            items[new] = items.pop(old)
    return _adaln_by_class(items)


def _adaln_by_class(items: dict[str, Any]) -> dict[str, Any]:
    """Return a node in which adaptive norms are a class, not the argument `adaln` of 0.1."""
    target = items[TARGET]
    if target not in WITH_ADALN or not {"adaln", *ADALN} & set(items):
        return items
    kind = items.pop("adaln", "none")
    given = {new: items.pop(old) for old, new in ADALN.items() if old in items}
    if kind not in ("none", "block", "shared"):
        raise UserError(f"Unknown adaln {kind!r}; use none, block or shared.")
    if kind != "none":
        items |= {TARGET: WITH_ADALN[target], "shared_adaln": kind == "shared", **given}
    warnings.warn(
        f"{target} no longer takes adaln={kind}; this is now {items[TARGET]}. The old arguments "
        "end with 0.3.",
        DeprecationWarning,
        3,
    )
    return items
