"""From plain configuration to modules: `{_target_: path.to.Class, argument: value}`.

Hydra composes the YAML; this builds it, in training and again from the config.json of a saved
model. A model directory may come from a stranger, so only argen's own modules are built unless
the caller says that the source is trusted.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

from argen.errors import UserError, suggest

TARGET = "_target_"
PARTIAL = "_partial_"  # true: not called yet, but handed over as what can be called
META = "_meta_"  # what is published of a preset (argen.zoo.meta), no argument of the class

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


def locate(path: str, *, trust: bool = True) -> Any:
    """Return the class or function at a dotted path.

    Raises:
        UserError: if it does not exist, or is not argen's own and `trust` is false.
    """
    path = current_path(path)
    module_name, _, name = path.rpartition(".")
    if not trust and not path.startswith("argen."):
        raise UserError(
            f"This model asks for {path}, code from outside argen. If you trust where it comes "
            "from, load it with trust=true."
        )
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise UserError(f"Cannot import {module_name!r} for _target_: {path} ({error}).") from error
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(f"{module_name} has no {name!r}.{suggest(name, public)}")
    return getattr(module, name)


def build(config: Any, *, trust: bool = True, **arguments: Any) -> Any:
    """Build what a plain configuration describes; nested nodes first.

    Args:
        config: nested dictionaries, lists and numbers; a dictionary with `_target_` is a call, or
            with `_partial_: true` too a function that makes the call when it is given the rest.
        trust: allow targets outside argen.
        arguments: override the outermost node's arguments.

    Returns:
        The object; a plain value comes back as it is. Its resolved configuration, overrides
        included where they are plain data, is kept as `object.config` on torch modules.
    """
    if isinstance(config, Mapping):
        if TARGET in config:
            config = current_arguments({**config, TARGET: current_path(config[TARGET])})
        if TARGET not in config:
            return {k: build(v, trust=trust) for k, v in config.items() if k != META}
        target = locate(config[TARGET], trust=trust)
        # Arguments that a class names in `deferred` it builds itself, when it has what they need.
        later = getattr(target, "deferred", ())
        items = {
            k: v if k in later else build(v, trust=trust)
            for k, v in config.items()
            if k not in (TARGET, PARTIAL, META)
        }
        if config.get(PARTIAL, False):
            return partial(target, **{**items, **arguments})
        try:
            made = target(**{**items, **arguments})
        except TypeError as error:
            if "argument" not in str(error):
                raise
            raise UserError(f"{config[TARGET]}: {error}.") from error
        if hasattr(made, "register_module"):
            made.config = {**config, **arguments}
        return made
    if isinstance(config, list | tuple):
        return [build(value, trust=trust) for value in config]
    return config
