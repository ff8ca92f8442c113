"""Weights in and out: safetensors for ours, guarded pickles for other people's."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import CheckpointError
from argen.runtime.files import file_inside, replacing, sha256_of

StateDict = dict[str, Tensor]


def save_weights(weights: Mapping[str, Tensor], path: Path | str) -> str:
    """Write tensors as safetensors, whole or not at all; returns the sha256 of the file."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().contiguous().cpu().clone() for k, v in weights.items()}
    with replacing(path) as temporary:
        save_file(tensors, str(temporary))
        return sha256_of(temporary)


def read_part(
    directory: Path | str, name: str, about: Mapping[str, Any], *, trust: bool = False
) -> StateDict:
    """Read the safetensors of one part of a model directory.

    Args:
        directory: of the model.
        name: of the file in it.
        about: the directory's config.json; the sha256 that it gives for the file is checked.
        trust: follow links out of the directory.

    Raises:
        CheckpointError: if the file is missing or damaged, or lies elsewhere.
    """
    path = file_inside(directory, name, links=trust)
    weights = read_weights(path)
    sums = about.get("sha256")
    expected = sums.get(name) if isinstance(sums, Mapping) else None
    # After reading: damage that safetensors sees itself has the plainer message.
    if expected is not None and sha256_of(path) != expected:
        raise CheckpointError(
            f"{path} is not the file that config.json was written with (its sha256 differs): "
            "copy or download it again. If you changed the weights yourself, delete its entry "
            'under "sha256" in config.json.'
        )
    return weights


def read_weights(path: Path | str, *, trust: bool = False) -> Any:
    """Read a weight file: a state dict from safetensors, whatever the file holds otherwise.

    Args:
        path: `.safetensors`, or anything torch.save wrote.
        trust: allow pickles that run code when loaded. Off, only tensors and plain containers
            are read.

    Raises:
        CheckpointError: if the file is missing, damaged or needs `trust`.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(str(path))
        except (SafetensorError, ValueError, OSError, MemoryError) as error:
            raise CheckpointError(
                f"{path} is damaged or cut short ({error}); copy or export it again."
            ) from error
    try:
        # Trainers like to store their parsed arguments; a Namespace holds data and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise CheckpointError(
                f"{path} holds pickled code besides tensors, which is unsafe to load. If you trust "
                "where it comes from, pass trust=true."
            ) from error
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({error}).") from error


def not_finite(weights: Mapping[str, Any]) -> str | None:
    """Return the name of the first tensor that holds NaN or an infinity, None if none does."""
    for name, value in weights.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            # Extremes show both, at the cost of one pass that writes nothing.
            low, high = value.detach().aminmax()
            if not (math.isfinite(float(low)) and math.isfinite(float(high))):
                return name
    return None


def load_strict(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    source: str,
    may_miss: Iterable[str] = (),
) -> None:
    """Load a state dict, every key of it, into a module.

    Args:
        module: receives the weights.
        weights: its state dict.
        source: where they come from, for the message.
        may_miss: prefixes of keys the file may leave out (frozen parts stored elsewhere).

    Raises:
        CheckpointError: naming the first three missing, unexpected or misshapen keys, or the
            first tensor with NaN or an infinity in it.
    """
    own = module.state_dict()
    if not isinstance(weights, Mapping):
        raise CheckpointError(
            f"{source} holds a {type(weights).__name__}, not the weights of a "
            f"{type(module).__name__}: it was made for something else."
        )
    strange = [key for key, value in weights.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(
            f"{source} holds more than tensors ({', '.join(map(str, strange[:3]))}): it is not the "
            f"weights of a {type(module).__name__}."
        )
    missing = [k for k in own if k not in weights and not k.startswith(tuple(may_miss))]
    extra = [k for k in weights if k not in own]
    misshapen = [
        f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", extra),
            ("of another shape", misshapen),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}. It was made "
            "for another model or configuration."
        )
    bad = not_finite(weights)
    if bad is not None:
        raise CheckpointError(
            f"{source}: {bad} holds NaN or infinity, so the model would draw nothing but noise. "
            "Take a checkpoint from before the training failed, or copy the file again."
        )
    module.load_state_dict(dict(weights), strict=not tuple(may_miss))
