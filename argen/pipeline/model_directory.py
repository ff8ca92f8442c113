"""A model on disk: `config.json` and one safetensors file a part.

The configuration says how to build the parts, their code spec, class names, sampling defaults and
where the weights come from. It is data: only argen's own classes are built from it unless the
reader trusts its source.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from argen import __version__
from argen.build import build
from argen.errors import CheckpointError, UserError
from argen.generators.base import Generator
from argen.layers.cpu.int8 import holds_int8
from argen.runtime.checkpoint import load_strict, read_weights, save_weights
from argen.runtime.files import read_json, write_json
from argen.runtime.no_init import no_init_weights
from argen.spec import CodeSpec, require_same_spec
from argen.tokenizers.base import Tokenizer

FORMAT = 1


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
    save_weights(tokenizer.state_dict(), directory / "tokenizer.safetensors")
    if generator is not None:
        config["generator"] = _config_of(generator)
        save_weights(generator.state_dict(), directory / "generator.safetensors")
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
    config = read_json(path / "config.json")
    if config.get("format", 0) > FORMAT:
        raise CheckpointError(f"{path} was written by a newer argen; upgrade with pip.")
    tokenizer = _build_part(path, config, "tokenizer", trust=trust)
    if tokenizer is None:
        raise CheckpointError(f"{path / 'config.json'} describes no tokenizer.")
    require_same_spec(
        tokenizer.spec,
        CodeSpec.from_dict(config["spec"]),
        found_in=f"{path}: the tokenizer",
        wanted_by="its config.json",
    )
    return tokenizer, _build_part(path, config, "generator", trust=trust), config


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


def _build_part(path: Path, config: dict[str, Any], part: str, *, trust: bool) -> Any:
    if part not in config:
        return None
    with no_init_weights():
        module = build(config[part], trust=trust)
    weights = path / f"{part}.safetensors"
    load_strict(module, read_weights(weights), source=str(weights))
    return module
