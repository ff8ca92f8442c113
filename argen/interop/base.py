"""What every importer shares: unwrapping checkpoint files and renaming their keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from argen.build import build
from argen.errors import CheckpointError
from argen.runtime.checkpoint import load_strict

StateDict = dict[str, Tensor]
Rule = tuple[str, str | None]


@dataclass
class Imported:
    """A foreign model in argen's terms.

    Attributes:
        config: what `argen.build.build` makes the module from.
        weights: its state dict.
        source: where it came from, for messages.
        copy: which of a file's copies of the weights was taken (`model`, `ema`, ...); empty where
            a file holds one.
    """

    config: dict[str, Any]
    weights: StateDict
    source: str
    copy: str = ""

    def build(self) -> nn.Module:
        """Build the module, in eval mode, with the weights loaded strictly."""
        module = build(self.config, trust=False)
        load_strict(module, self.weights, source=self.source)
        return module.eval()


def copy_in(
    checkpoint: Any, *, keys: Sequence[str], source: str, wanted: str | None = None
) -> tuple[str, tuple[str, ...]]:
    """Return which copy of the weights is taken, and the keys for `unwrap` that take it.

    Args:
        checkpoint: what the file holds.
        keys: wrapping keys, best first.
        source: the file, for messages.
        wanted: the copy that was asked for; the best one when None.

    Returns:
        the copy's key where there are several, else an empty string; and the keys.

    Raises:
        CheckpointError: if the copy that is wanted is not there.
    """
    there = (
        [k for k in keys if isinstance(checkpoint.get(k), Mapping)]
        if isinstance(checkpoint, Mapping)
        else []
    )
    if wanted is not None and wanted not in there:
        found = ", ".join(there) or "one, without a name"
        raise CheckpointError(
            f"{source} holds no copy {wanted!r} of the weights; it holds {found}."
        )
    taken = [wanted] if wanted is not None else there[:1]
    return (taken[0] if len(there) > 1 else ""), (*taken, *keys)


def unwrap(checkpoint: Any, *, keys: Sequence[str], source: str) -> StateDict:
    """Return the state dict inside a checkpoint file.

    Args:
        checkpoint: what the file holds.
        keys: wrapping keys to look under, best first; a bare state dict needs none.
        source: the file, for messages.
    """
    found = checkpoint
    if isinstance(found, Mapping):
        found = next((found[k] for k in keys if isinstance(found.get(k), Mapping)), found)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{source} holds no state dict.")
    weights = {k: v for k, v in found.items() if isinstance(v, Tensor)}
    if not weights:
        raise CheckpointError(f"{source} holds no tensors; looked under {', '.join(keys)}.")
    for prefix in ("module.", "_orig_mod."):
        if all(k.startswith(prefix) for k in weights):
            weights = {k.removeprefix(prefix): v for k, v in weights.items()}
    return weights


def rename(weights: Mapping[str, Tensor], rules: Sequence[Rule], *, source: str) -> StateDict:
    """Rename keys by the first rule that matches the whole key; None drops it.

    Raises:
        CheckpointError: naming the first three keys that no rule knows.
    """
    compiled = [(re.compile(pattern), target) for pattern, target in rules]
    renamed: StateDict = {}
    unknown = []
    for key, value in weights.items():
        for pattern, target in compiled:
            match = pattern.fullmatch(key)
            if match:
                if target is not None:
                    renamed[match.expand(target)] = value
                break
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"{source}: {len(unknown)} unknown keys ({', '.join(unknown[:3])}); it is a checkpoint "
            "of another model."
        )
    return renamed


def merge(
    weights: StateDict, suffixes: Sequence[str], target: str, combine: Callable = torch.cat
) -> StateDict:
    """Combine keys that differ in one part: `a.q.w`, `a.k.w`, `a.v.w` become `a.<target>.w`.

    Args:
        weights: the state dict.
        suffixes: the differing parts, e.g. ("q", "k", "v"), in the order they are combined.
        target: the part that takes their place.
        combine: joins the list of tensors.
    """
    merged: StateDict = {}
    for key, value in weights.items():
        parts = key.split(".")
        hits = [i for i, part in enumerate(parts) if part == suffixes[0]]
        if hits:
            names = [
                ".".join(suffix if i == hits[-1] else part for i, part in enumerate(parts))
                for suffix in suffixes
            ]
            if all(name in weights for name in names):
                parts[hits[-1]] = target
                merged[".".join(parts)] = combine([weights[name] for name in names])
                continue
        if any(part in suffixes[1:] for part in parts):
            twin = ".".join(suffixes[0] if part in suffixes[1:] else part for part in parts)
            if twin in weights:
                continue
        merged[key] = value
    return merged


def count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """Return one more than the largest number that a key pattern captures.

    Raises:
        CheckpointError: if no key matches.
    """
    found = [int(match[1]) for key in weights if (match := re.fullmatch(pattern, key))]
    if not found:
        raise CheckpointError(f"No key matches {pattern}; this is a checkpoint of another model.")
    return max(found) + 1


def reverse_levels(weights: Mapping[str, Tensor]) -> StateDict:
    """Number decoder levels in the order they run, where they were numbered by resolution."""
    pattern = re.compile(r"((?:.+\.)?decoder\.levels)\.(\d+)\.(.+)")
    matches = {key: pattern.fullmatch(key) for key in weights}
    last = max((int(match[2]) for match in matches.values() if match), default=0)
    return {
        f"{match[1]}.{last - int(match[2])}.{match[3]}" if (match := matches[key]) else key: value
        for key, value in weights.items()
    }
