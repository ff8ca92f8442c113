"""From plain configuration to modules: `{_target_: path.to.Class, argument: value}`.

Hydra composes the YAML; this builds it, in training and again from the config.json of a saved
model. A file may come from a stranger, so by default only registered classes are built: networks
that are defined in the packages of `PACKAGES`, what inherits from a class marked `@buildable`, and,
where a data set or a text encoder is expected, functions marked for it. What the user wrote, in
YAML, on the command line or in Python, is built with `trust=True`, which allows every target.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from inspect import isclass, isfunction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from argen.errors import CheckpointError, UserError, suggest
from argen.moved import TARGET, current_arguments, current_path

PARTIAL = "_partial_"  # true: not called yet, but handed over as what can be called
META = "_meta_"  # what is published of a preset (argen.zoo.meta), no argument of the class

# Where a target of a stored configuration may be defined. The constructors there take plain values
# and parts; they run no code that their arguments name.
PACKAGES = (
    "argen.data",
    "argen.decoding",
    "argen.generators",
    "argen.layers",
    "argen.objectives",
    "argen.testing",
    "argen.text",
    "argen.tokenizers",
    "argen.training",
)
DOTTED = re.compile(r"argen(\.[A-Za-z][A-Za-z0-9_]*)+")
ADDRESS = re.compile(r"://|pipe:", re.IGNORECASE)
MARK = "__argen_buildable__"

T = TypeVar("T")
Check = Callable[[Mapping[str, Any]], None]


class Buildable(NamedTuple):
    """The mark of what a stored configuration may name.

    Attributes:
        kind: what a function gives, `data` or `text`; empty for classes.
        check: raises `UserError` for arguments that a file may not give.
    """

    kind: str = ""
    check: Check | None = None


def buildable(kind: str = "", *, check: Check | None = None) -> Callable[[T], T]:
    """Return a decorator that lets stored configurations name a class, or a function of a kind.

    Subclasses inherit it, and networks (`nn.Module`) in `PACKAGES` need none.

    Args:
        kind: of a function, what it gives: `data` for data sets, `text` for text encoders. A
            stored configuration may name it only where that is expected.
        check: called with the stored arguments; raises `UserError` for what a file may not give.
    """

    def mark(thing: T) -> T:
        setattr(thing, MARK, Buildable(kind, check))
        return thing

    return mark


def locate(path: str, *, trust: bool = False, functions: str = "") -> Any:
    """Return the class or function at a dotted path.

    Args:
        path: where it is defined.
        trust: allow every target; else registered ones, and nothing else is imported.
        functions: the kind of functions that are registered here too, see `buildable`.

    Raises:
        UserError: if it does not exist, or is not registered and `trust` is false.
    """
    path = current_path(path)
    module_name, _, name = path.rpartition(".")
    inside = f"{module_name}.".startswith(tuple(f"{package}." for package in PACKAGES))
    if not trust and not (inside and DOTTED.fullmatch(path)):
        raise _refused(path)
    try:
        module = import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UserError(f"Cannot import {module_name!r} for _target_: {path} ({error}).") from error
    if name not in vars(module):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(f"{module_name} has no {name!r}.{suggest(name, public)}")
    found = vars(module)[name]
    if not trust and not _registered(found, module_name, functions):
        raise _refused(path)
    return found


def require_registered(config: Any, *, functions: str = "") -> None:
    """Raise unless a configuration names registered classes alone, and no address elsewhere.

    Args:
        config: as for `build`.
        functions: the kind of functions that the outermost node may name, see `buildable`.

    Raises:
        UserError: naming what is refused, and what to do where its source is trusted.
    """
    if isinstance(config, Mapping):
        arguments = {key: value for key, value in config.items() if key not in (TARGET, META)}
        for value in arguments.values():
            require_registered(value)
        if TARGET in config:
            if not isinstance(config[TARGET], str):
                raise UserError(f"_target_ must be the path of a class, not {config[TARGET]!r}.")
            found = locate(config[TARGET], functions=functions)
            check = getattr(found, MARK, Buildable()).check
            if check is not None:
                check(arguments)
    elif isinstance(config, list | tuple):
        for value in config:
            require_registered(value)
    elif isinstance(config, str) and ADDRESS.search(config):
        raise UserError(
            f"A stored configuration names the address {config[:80]!r}. Addresses are followed "
            "only where you give them yourself, on the command line or in your own YAML; if you "
            "trust where this file comes from, load it with trust=true."
        )


def build(config: Any, *, trust: bool = False, functions: str = "", **arguments: Any) -> Any:
    """Build what a plain configuration describes; nested nodes first.

    Args:
        config: nested dictionaries, lists and numbers; a dictionary with `_target_` is a call, or
            with `_partial_: true` too a function that makes the call when it is given the rest.
        trust: allow targets that are not registered, functions and addresses: for what the user
            wrote. Else all nodes are looked at before the first is built.
        functions: the kind of functions that the outermost node may name, see `buildable`.
        arguments: override the outermost node's arguments.

    Returns:
        The object; a plain value comes back as it is. Its resolved configuration, overrides
        included where they are plain data, is kept as `object.config` on torch modules.

    Raises:
        UserError: for targets that do not exist or may not be built, and unknown arguments.
    """
    if not trust:
        require_registered(config, functions=functions)
    return _made(config, trust, functions, arguments)


def build_stored(
    config: Any, of: type[T], *, source: Path | str, trust: bool = False, functions: str = ""
) -> T:
    """Build what a file describes; whatever is wrong with it is an error that names the file.

    Args:
        config: a node with `_target_`.
        of: what it must be.
        source: the file.
        trust: as for `build`.
        functions: as for `build`.

    Raises:
        UserError: for targets that may not be built.
        CheckpointError: for a description that cannot be built, or of something else.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get(TARGET), str):
        raise CheckpointError(
            f"{source} does not describe a {of.__name__}: where one belongs it has no _target_. "
            "Copy or export the file again."
        )
    try:
        made = build(config, trust=trust, functions=functions)
    except UserError:
        raise
    except Exception as error:  # a damaged description fails in whatever way its numbers lead to
        raise CheckpointError(
            f"{source}: {config[TARGET]} cannot be built as it is described there "
            f"({type(error).__name__}: {_first_line(error)}). Copy or export the file again."
        ) from error
    if not isinstance(made, of):
        raise CheckpointError(
            f"{source} describes a {type(made).__name__} where a {of.__name__} belongs. Copy or "
            "export the file again."
        )
    return made


def _made(config: Any, trust: bool, functions: str, arguments: Mapping[str, Any]) -> Any:
    if isinstance(config, Mapping):
        if TARGET in config:
            config = current_arguments({**config, TARGET: current_path(config[TARGET])})
        if TARGET not in config:
            return {k: _made(v, trust, "", {}) for k, v in config.items() if k != META}
        target = locate(config[TARGET], trust=trust, functions=functions)
        # Arguments that a class names in `deferred` it builds itself, when it has what they need.
        later = getattr(target, "deferred", ())
        items = {
            k: v if k in later else _made(v, trust, "", {})
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
        return [_made(value, trust, "", {}) for value in config]
    return config


def _registered(found: Any, module_name: str, functions: str) -> bool:
    """Whether something in a module is defined in or below it, and may be built from a file."""
    own = getattr(found, "__module__", None)
    if not isinstance(own, str) or not f"{own}.".startswith(f"{module_name}."):
        return False
    mark = getattr(found, MARK, None)
    if isfunction(found):
        return mark is not None and bool(functions) and mark.kind == functions
    if not isclass(found):
        return False
    if mark is not None:
        return True
    from torch import nn

    return issubclass(found, nn.Module)


def _refused(path: str) -> UserError:
    return UserError(
        f"A stored configuration asks for {path}, which is not one of argen's own tokenizers, "
        "generators or their parts. If you trust where it comes from, load it with trust=true."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:200].rstrip(".")
