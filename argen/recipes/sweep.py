"""`argen evaluate sweep.cfg=[...]`: one model, many sampling settings, one reference."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from argen.data.images import ImageSource
from argen.evaluation.reference import Reference
from argen.evaluation.reference_making import open_reference, protocol_reference
from argen.evaluation.sweep import plot, point_name, table
from argen.pipeline import Pipeline
from argen.pipeline.model_directory import weights_fingerprint
from argen.pipeline.settings import SETTINGS
from argen.pretrained.base import FeatureExtractor
from argen.pretrained.features import build_extractor
from argen.recipes.score import data_of, open_model, score_model
from argen.recipes.score_request import ScoreRequest
from argen.runtime.command import require_writable, show
from argen.runtime.distributed import barrier, is_rank_zero, own_device
from argen.runtime.files import read_json, replacing, write_json


def run_sweep(request: ScoreRequest) -> list[str]:
    """Score every point that has no result yet; write the table and the plot of all that have.

    Args:
        request: of a model, with a sweep.

    Returns:
        the lines to print.

    Raises:
        UserError: as `score_model`.
    """
    assert request.sweep is not None
    pipe = open_model(request)
    source = data_of(request, pipe)
    protocol, sweep = request.protocol, request.sweep
    out = request.out or Path(str(request.where)) / f"sweep-{protocol.name}"
    require_writable(out)
    request.count  # noqa: B018 - refuses too few images before anything is sampled
    key = _key(request, pipe)
    files = {point_name(point): out / f"{point_name(point)}.json" for point in sweep.points}
    missing = [point for point in sweep.own if _read(files[point_name(point)], key) is None]
    if missing:
        extractor = build_extractor(
            protocol.extractor,
            size=protocol.size,
            weights_path=request.features_path,
            device=own_device(request.device),
        )
        reference = _reference(request, source, extractor, out / f"reference-{key}.npz")
    for number, point in enumerate(missing):
        if is_rank_zero():
            show(f"{number + 1} of {len(missing)}: {point_name(point)}")
        score_model(
            request.at(point, files[point_name(point)]),
            pipe,
            source,
            extractor=extractor,
            reference=reference,
            about={"sweep_key": key},
        )
    results = [(point, _read(files[point_name(point)], key)) for point in sweep.points]
    done = [(point, result) for point, result in results if result is not None]
    if is_rank_zero():
        write_json(out / "table.json", {"points": [{**p, **r} for p, r in done]})
        with replacing(out / "table.md") as temporary:
            temporary.write_text(table(done), encoding="utf-8")
        plot(done, out / "plot.png")
    left = len(sweep.points) - len(done)
    lines = [table(done), f"written to {out / 'table.md'} and {out / 'plot.png'}"]
    return lines + ([f"{left} points are still missing: other parts"] if left else [])


def _key(request: ScoreRequest, pipe: Pipeline) -> str:
    """Return a hash of all that decides a result, the swept settings aside."""
    assert pipe.generator is not None
    about = {
        "protocol": request.protocol.hash(),
        "tokenizer": weights_fingerprint(pipe.tokenizer),
        "generator": weights_fingerprint(pipe.generator),
        "defaults": pipe.defaults,
        "settings": {name: request.sampling.get(name) for name in SETTINGS},
        "decoder": request.decoder,
        "n": request.n,
        "seed": request.seed,
        "reference": request.reference,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """Return the result in a file, None if there is none or it was made otherwise."""
    result = read_json(path) if path.is_file() else {}
    return result if result.get("sweep_key") == key else None


def _reference(
    request: ScoreRequest, source: ImageSource | None, extractor: FeatureExtractor, path: Path
) -> Reference | None:
    """Return the reference, kept in the sweep's directory for jobs that follow.

    None where the protocol brings a file of statistics, which every point reads by itself.
    """
    protocol = request.protocol
    if request.reference is None and protocol.reference != "train":
        return None
    if path.is_file():
        return Reference.load(path)
    size = request.batch_size
    if request.reference is not None:
        made = open_reference(request.reference, protocol, extractor=extractor, batch_size=size)
    else:
        made = protocol_reference(protocol, extractor, source=source, batch_size=size)
    barrier()
    if is_rank_zero():
        made.save(path)
    barrier()
    return made
