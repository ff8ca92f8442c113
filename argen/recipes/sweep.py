"""`python -m argen.evaluate sweep.cfg=[...]`: one model, many sampling settings, one reference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from argen.runtime.command import require_writable, show

Score = Callable[[dict[str, Any]], tuple[dict[str, Any], Path]]


def run_sweep(settings: dict[str, Any], pipe: Any, source: Any, score: Score) -> list[str]:
    """Score every point that has no result yet; write the table and the plot of all that have.

    Args:
        settings: of the command.
        pipe: the model, loaded once.
        source: the data it is compared with; None where the protocol needs none.
        score: scores one point, given settings with `pipe`, `extractor` and `reference` in them.

    Returns:
        what to print.
    """
    from argen.evaluation.protocol import Protocol
    from argen.evaluation.sweep import plot, point_name, points, share, table
    from argen.pretrained.features import build_extractor
    from argen.runtime.distributed import rank_and_world_size
    from argen.runtime.files import replacing, write_json

    sweep, protocol = settings["sweep"], Protocol.from_dict(settings["protocol"])
    everything = points(sweep)
    own = share(everything, sweep["part"], sweep["parts"])
    out = Path(settings["out"] or Path(settings["model"]) / f"sweep-{protocol.name}")
    require_writable(out)
    protocol.check_count(settings["n"] or protocol.samples, quick=settings["quick"])
    key = _key(settings, protocol, pipe)
    files = {point_name(point): out / f"{point_name(point)}.json" for point in everything}
    todo = [point for point in own if _read(files[point_name(point)], key) is None]
    first = rank_and_world_size()[0] == 0
    if todo:
        extractor = build_extractor(
            protocol.extractor,
            size=protocol.size,
            weights_path=settings["features_path"],
            device=settings["torch_device"],
        )
        reference = _reference(settings, protocol, source, extractor, out, key)
    for number, point in enumerate(todo):
        if first:
            show(f"{number + 1} of {len(todo)}: {point_name(point)}")
        score(
            {
                **settings,
                **point,
                "pipe": pipe,
                "extractor": extractor,
                "reference": reference,
                "sweep_key": key,
                "out": str(files[point_name(point)]),
            }
        )
    results = [(point, _read(files[point_name(point)], key)) for point in everything]
    done = [(point, result) for point, result in results if result is not None]
    if first:
        write_json(out / "table.json", {"points": [{**p, **r} for p, r in done]})
        with replacing(out / "table.md") as temporary:
            temporary.write_text(table(done), encoding="utf-8")
        plot(done, out / "plot.png")
    missing = len(everything) - len(done)
    lines = [table(done), f"written to {out / 'table.md'} and {out / 'plot.png'}"]
    return lines + ([f"{missing} points are still missing: other parts"] if missing else [])


def _key(settings: dict[str, Any], protocol: Any, pipe: Any) -> str:
    """Return a hash of all that decides a result, the swept settings aside."""
    from argen.pipeline.model_directory import weights_fingerprint
    from argen.pipeline.settings import SETTINGS

    about = {
        "protocol": protocol.hash,
        "tokenizer": weights_fingerprint(pipe.tokenizer),
        "generator": weights_fingerprint(pipe.generator),
        "defaults": pipe.defaults,
        "settings": {name: settings.get(name) for name in SETTINGS},
        "decoder": settings.get("decoder"),
        "n": settings["n"],
        "seed": settings["seed"],
        "reference": settings["reference"],
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """Return the result in a file, None if there is none or it was made otherwise."""
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result if result.get("sweep_key") == key else None


def _reference(
    settings: dict[str, Any], protocol: Any, source: Any, extractor: Any, out: Path, key: str
) -> Any:
    """Return the reference, kept in the sweep's directory for jobs that follow.

    None where the protocol brings a file of statistics, which every point reads by itself.
    """
    from argen.evaluation.reference import Reference
    from argen.evaluation.reference_making import open_reference, protocol_reference
    from argen.runtime.distributed import barrier, rank_and_world_size

    if settings["reference"] is None and protocol.reference != "train":
        return None
    path = out / f"reference-{key}.npz"
    if path.is_file():
        return Reference.load(path)
    batch_size = settings["batch_size"]
    if settings["reference"] is not None:
        made = open_reference(
            settings["reference"], protocol, extractor=extractor, batch_size=batch_size
        )
    else:
        made = protocol_reference(protocol, extractor, source=source, batch_size=batch_size)
    barrier()
    if rank_and_world_size()[0] == 0:
        made.save(path)
    barrier()
    return made
