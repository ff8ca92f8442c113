"""A model on disk: `config.json` and one safetensors file a part.

The configuration says how to build the parts, their code spec, class names, sampling defaults and
where the weights come from, and the sha256 of the weight files. It is data: only registered classes
are built from it unless the reader trusts its source, and files outside the directory are not read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from argen import __version__
from argen.build import build_stored
from argen.errors import CheckpointError, UserError
from argen.generators.base import Generator
from argen.layers.cpu.int8 import holds_int8
from argen.runtime.checkpoint import load_strict, read_part, save_weights
from argen.runtime.files import file_inside, read_json_object, write_json
from argen.runtime.no_init import no_init_weights
from argen.spec import CodeSpec, require_same_spec
from argen.tokenizers.base import Tokenizer

FORMAT = 1
Part = TypeVar("Part", bound=nn.Module)
# What config.json may hold, and how that is called in messages.
ENTRIES: dict[str, tuple[type, str]] = {
    "format": (int, "a whole number"),
    "spec": (dict, "an object"),
    "tokenizer": (dict, "an object"),
    "generator": (dict, "an object"),
    "text": (dict, "an object"),
    "class_names": (list, "a list"),
    "defaults": (dict, "an object"),
    "provenance": (dict, "an object"),
    "sha256": (dict, "an object"),
}


def write_model(
    directory: Path | str,
    *,
    tokenizer: Tokenizer,
    generator: Generator | None = None,
    about: dict[str, Any],
) -> None:
    """Write a model directory; the configuration comes last, so half a model is never read.

    Args:
        directory: where; made if need be.
        tokenizer: built from a configuration.
        generator: likewise, if there is one.
        about: class names, sampling defaults, provenance.
    """
    if generator is not None and holds_int8(generator):
        raise UserError("A model whose weights were rounded to int8 cannot be saved.")
    directory = Path(directory)
    config: dict[str, Any] = {
        "format": FORMAT,
        "argen": __version__,
        "spec": tokenizer.spec.to_dict(),
        "spec_fingerprint": tokenizer.spec.fingerprint(),
        **about,
        "tokenizer": _config_of(tokenizer),
    }
    parts: dict[str, nn.Module] = {"tokenizer": tokenizer}
    if generator is not None:
        config["generator"] = _config_of(generator)
        parts["generator"] = generator
    config["sha256"] = {
        f"{part}.safetensors": save_weights(module.state_dict(), directory / f"{part}.safetensors")
        for part, module in parts.items()
    }
    write_json(directory / "config.json", config)


def read_model(
    path: Path | str, *, trust: bool = False
) -> tuple[Tokenizer, Generator | None, dict[str, Any]]:
    """Return tokenizer, generator (or None) and configuration of a model directory.

    Raises:
        CheckpointError: if the directory is missing, incomplete or damaged.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        inside = path / "model" / "config.json"
        hint = f" Did you mean {path / 'model'}?" if inside.is_file() else ""
        raise CheckpointError(
            f"{path} is not an argen model directory (no config.json in it).{hint}"
        )
    config = read_config(path, trust=trust)
    tokenizer = _build_part(path, config, Tokenizer, trust=trust)  # type: ignore[type-abstract]
    if tokenizer is None:
        raise CheckpointError(f"{path / 'config.json'} describes no tokenizer.")
    require_same_spec(
        tokenizer.spec,
        _spec(path, config),
        found_in=f"{path}: the tokenizer",
        wanted_by="its config.json",
    )
    generator = _build_part(path, config, Generator, trust=trust)  # type: ignore[type-abstract]
    return tokenizer, generator, config


def read_config(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """Return the config.json of a model directory, of which every entry has its type.

    Raises:
        CheckpointError: if it is missing, damaged, of a newer argen, or something else.
    """
    place = file_inside(path, "config.json", links=trust)
    config = read_json_object(place)
    for key, (kind, words) in ENTRIES.items():
        if config.get(key) is not None and not isinstance(config[key], kind):
            raise CheckpointError(
                f"{place}: {key} is {type(config[key]).__name__}, not {words}. It is damaged or "
                "not argen's: copy or export the model again."
            )
    names = config.get("class_names") or []
    if not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{place}: class_names holds more than names; export it again.")
    if (config.get("format") or 0) > FORMAT:
        raise CheckpointError(f"{path} was written by a newer argen; upgrade with pip.")
    return config


def weights_fingerprint(module: nn.Module) -> str:
    """Return 16 hexadecimal digits that name a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def _config_of(module: nn.Module) -> dict[str, Any]:
    config = getattr(module, "config", None)
    if not isinstance(config, dict):
        raise UserError(
            f"{type(module).__name__} was not made from a configuration, so it cannot be saved as "
            "a model directory; make it with argen.build.build(config)."
        )
    return config


def _spec(path: Path, config: dict[str, Any]) -> CodeSpec:
    try:
        return CodeSpec.from_dict(config["spec"])
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        raise CheckpointError(
            f"{path / 'config.json'}: spec describes no codes ({type(error).__name__}: {error}). "
            "It is damaged: copy or export the model again."
        ) from error


def _build_part(path: Path, config: dict[str, Any], of: type[Part], *, trust: bool) -> Part | None:
    part = of.__name__.lower()
    if config.get(part) is None:
        return None
    with no_init_weights():
        module = build_stored(config[part], of, source=path / "config.json", trust=trust)
    name = f"{part}.safetensors"
    load_strict(module, read_part(path, name, config, trust=trust), source=str(path / name))
    return module
