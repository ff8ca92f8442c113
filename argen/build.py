"""From plain configuration to modules: `{_target_: path.to.Class, argument: value}`.

Hydra composes the YAML; this builds it, in training and again from the config.json of a saved
model. A model directory may come from a stranger, so only argen's own modules are built unless
the caller says that the source is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from argen.errors import UserError, suggest

TARGET = "_target_"
META = "_meta_"  # source, licences and expected scores of a preset; for people, not for the class


def locate(path: str, *, trust: bool = True) -> Any:
    """Return the class or function at a dotted path.

    Raises:
        UserError: if it does not exist, or is not argen's own and `trust` is false.
    """
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
        config: nested dictionaries, lists and numbers; a dictionary with `_target_` is a call.
        trust: allow targets outside argen.
        arguments: override the outermost node's arguments.

    Returns:
        The object; a plain value comes back as it is. Its resolved configuration, overrides
        included where they are plain data, is kept as `object.config` on torch modules.
    """
    if isinstance(config, Mapping):
        items = {k: build(v, trust=trust) for k, v in config.items() if k not in (TARGET, META)}
        if TARGET not in config:
            return items
        target = locate(config[TARGET], trust=trust)
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
