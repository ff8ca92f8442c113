"""A score as a file: numbers, versions, seed, commit and time, written in one piece."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from argen import __version__
from argen.data.images import ImageSource
from argen.evaluation.protocol import Protocol
from argen.evaluation.score import score_samples

SHOWN = (
    "sfid",
    "inception_score",
    "kid",
    "precision",
    "recall",
    "density",
    "coverage",
    "psnr_db",
    "ssim",
    "lpips",
    "code_usage",
    "class_agreement",
    "near_copies",
    "duplicates",
)
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "torch-fidelity")


def evaluate(
    images: Tensor | Iterable[Tensor] | Iterable[tuple[Tensor, Tensor]],
    *,
    protocol: Protocol | Mapping[str, Any] | str | Path,
    labels: Tensor | None = None,
    source: ImageSource | None = None,
    out: Path | str | None = None,
    about: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score pictures made by anyone and write `metrics.json`.

    Args:
        images: (N, 3, H, W) in [-1, 1] or uint8, or batches, e.g. from `pictures.read_images`;
            a generator is drawn from only after everything else has been checked.
        protocol: one that ships by name, a YAML file, a mapping, or the object.
        labels: (N,) classes asked for; None if unknown.
        source: the data that the samples imitate.
        out: the file to write; nothing is written when not given.
        about: what else to record, e.g. model, seed and sampler settings.
        **options: of `score.Scorer`: quick, reference, copies_of, weights_path, device, ...

    Returns:
        what was written.

    Raises:
        UserError: as `score.Scorer`.
    """
    start = time.perf_counter()
    if isinstance(protocol, (str, Path)):
        protocol = Protocol.load(protocol)
    elif not isinstance(protocol, Protocol):
        protocol = Protocol.from_dict(protocol)
    result = score_samples(images, labels, source, protocol, **options)
    result |= {**provenance(), **(about or {})}
    result["wall_seconds"] = round(time.perf_counter() - start, 2)
    first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    if out is not None and first:
        write_json(Path(out), result)
    return result


def summary(result: Mapping[str, Any]) -> str:
    """Return the lines that a command prints about a result."""
    protocol = result["protocol"]
    lines = []
    if protocol["key"] in result:
        lines.append(f"{result['score_name']}: {result[protocol['key']]:.4g}")
    for key in SHOWN:
        if key in result:
            spread = f" ± {result[f'{key}_std']:.2g}" if f"{key}_std" in result else ""
            lines.append(f"{key}: {result[key]:.4g}{spread}")
    lines += [f"{name}: left out, {why}" for name, why in result["skipped"].items()]
    if result["not_comparable_because"]:
        lines.append("not comparable: " + "; ".join(result["not_comparable_because"]))
    lines.append(f"protocol {protocol['name']} [{protocol['hash']}], {result['samples']} samples")
    return "\n".join(lines)


def provenance() -> dict[str, Any]:
    """Return versions, and the commit of the checkout that argen runs from (None elsewhere)."""
    versions = {"argen": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "commit": _commit()}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write to a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    # An installed copy may lie in somebody else's checkout: its commit would be the wrong one.
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
