"""Settings that got another name: the old one is taken until 0.3, with a warning.

A class or argument of one that YAML names by `_target_` is renamed in `argen.build`; this is about
keys and words of the command line and of a user's own YAML.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

# Old key: new key. A stage's own settings (stages.NAME.KEY) follow.
KEYS = {
    "decoder.randomize": "decoder.choice_temperature",
    "fit.most_skipped": "fit.max_skipped",
    "fit.recompute": "fit.gradient_checkpointing",
    "objective.perceptual": "objective.image_terms",
    "optim.final": "optim.min_lr_ratio",
    "optim.plateau": "optim.hold",
    "optim.stair": "optim.gamma",
}
# (new key, old value): new value.
VALUES: dict[tuple[str, str], str] = {
    ("decoder.guess", "certain"): "one_hot",
    ("optim.schedule", "stairs"): "multistep",
}


def renamed_word(word: str) -> str:
    """Return an argument of the command line with the names of today.

    `fit.recompute=true` becomes `fit.gradient_checkpointing=true`, and `+a.b=1` becomes `++a.b=1`,
    which is taken whether the key is there or not.
    """
    key, equals, value = word.partition("=")
    bare = key.lstrip("+~")
    prefix, rest = _stage(bare)
    new = _new_key(rest)
    told = VALUES.get((new, value), value)
    sign = key[: len(key) - len(bare)]
    if sign == "+" and "." in bare and "@" not in bare:
        sign = "++"  # a key that had to be added once may be there now
    result = f"{sign}{prefix}{new}{equals}{told}"
    if (new, told) != (rest, value):
        _warn(word, result)
    return result


def _new_key(key: str) -> str:
    """Return the name of today of a key, or of the settings below one: `objective.perceptual.x`."""
    for old, new in KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return new + key[len(old) :]
    return key


def renamed_settings(config: Any) -> Any:
    """Return a plain configuration with the names of today; what was set by an old one wins."""
    if not isinstance(config, Mapping):
        return config
    result = {key: _copy(value) for key, value in config.items()}
    stages = result.get("stages")
    for place in (result, *(stages.values() if isinstance(stages, dict) else ())):
        if isinstance(place, dict):
            _rename_within(place)
    return result


def _rename_within(config: dict[str, Any]) -> None:
    for old, new in KEYS.items():
        group, _, name = old.rpartition(".")
        holder = _descend(config, group)
        if holder is not None and name in holder:
            new_group, _, new_name = new.rpartition(".")
            target = _descend(config, new_group)
            if target is not None:
                target[new_name] = _over(target.get(new_name), holder.pop(name))
                _warn(old, new)
    for (key, old), new in VALUES.items():
        group, _, name = key.rpartition(".")
        holder = _descend(config, group)
        if holder is not None and holder.get(name) == old:
            holder[name] = new
            _warn(f"{key}={old}", f"{key}={new}")


def _descend(config: dict[str, Any], path: str) -> dict[str, Any] | None:
    node: Any = config
    for part in path.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None


def _over(below: Any, above: Any) -> Any:
    """Return settings laid over others; single values replace."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: _over(below.get(key), value) for key, value in above.items()}


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _stage(key: str) -> tuple[str, str]:
    parts = key.split(".", 2)
    if parts[0] == "stages" and len(parts) == 3:
        return f"stages.{parts[1]}.", parts[2]
    return "", key


def _warn(old: str, new: str) -> None:
    # Seen by whoever types it: Python hides plain DeprecationWarnings from users.
    warnings.warn(f"{old} is now {new}; the old name ends with 0.3.", FutureWarning, stacklevel=3)
