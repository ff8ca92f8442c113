"""Weights in and out: safetensors for ours, guarded pickles for other people's."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import CheckpointError
from argen.runtime.files import replacing

StateDict = dict[str, Tensor]


def save_weights(weights: Mapping[str, Tensor], path: Path | str) -> None:
    """Write tensors as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().contiguous().cpu().clone() for k, v in weights.items()}
    with replacing(path) as temporary:
        save_file(tensors, str(temporary))


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
        except (SafetensorError, ValueError) as error:
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
        CheckpointError: naming the first three missing, unexpected or misshapen keys.
    """
    own = module.state_dict()
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
    module.load_state_dict(dict(weights), strict=not tuple(may_miss))
