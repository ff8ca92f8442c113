"""A score as a file: numbers, versions, seed, commit and time, written in one piece."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from argen.data.images import ImageSource
from argen.evaluation.protocol import Protocol
from argen.evaluation.score import score_samples
from argen.runtime.distributed import is_rank_zero
from argen.runtime.files import write_json
from argen.runtime.provenance import provenance

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
    """Score images made by anyone and write `metrics.json`.

    Args:
        images: (N, 3, H, W) in [-1, 1] or uint8, or batches, e.g. from `images.read_images`;
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
    if out is not None and is_rank_zero():
        write_json(Path(out), result, allow_nan=False)
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
    lines += [f"note: {note}" for note in result.get("notes", ())]
    if result["not_comparable_because"]:
        lines.append("not comparable: " + "; ".join(result["not_comparable_because"]))
    lines.append(f"protocol {protocol['name']} [{protocol['hash']}], {result['samples']} samples")
    return "\n".join(lines)
