"""Score a model or a folder of pictures: `python -m argen.evaluate --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from argen.app import require_writable, run, show
from argen.errors import UserError


def main(config: Any) -> None:
    """Draw if need be, score, write the JSON."""
    import torch

    from argen.build import build
    from argen.controls import SETTINGS
    from argen.device import pick_device
    from argen.evaluation.pictures import read_images
    from argen.evaluation.protocol import Protocol
    from argen.evaluation.report import evaluate, summary
    from argen.pipeline import load
    from argen.train import plain

    settings = plain(config)
    if (settings["model"] is None) == (settings["samples"] is None):
        raise UserError("Give model=DIR to score a model, or samples=DIR to score pictures.")
    device, protocol = pick_device(settings["device"]), Protocol.from_dict(settings["protocol"])
    options: dict[str, Any] = {
        "quick": settings["quick"],
        "weights_path": settings["inception_path"],
        "device": device,
        "batch_size": settings["batch_size"],
    }
    if settings["model"] is None:
        if settings.get("data") is None:
            raise UserError("Say what the pictures are compared with: data=folder data.path=DIR.")
        out = Path(settings["out"] or "metrics.json")
        require_writable(out.parent)
        images: Any = read_images(settings["samples"])
        first = next(images)
        settings["data"]["image_size"] = list(first.shape[2:])
        batches = [first, *images]
        options["samples"] = sum(len(batch) for batch in batches)
        about: dict[str, Any] = {"pictures": str(settings["samples"])}
        result = evaluate(
            batches,
            protocol=protocol,
            source=build(settings["data"]),
            out=out,
            about=about,
            **options,
        )
    else:
        pipe = load(settings["model"], device=device, trust=settings["trust"])
        data = settings.get("data") or pipe.provenance.get("data_config")
        if data is None:
            raise UserError("This model does not say what it was trained on; give data=CHOICE.")
        source = build({**data, "image_size": list(pipe.tokenizer.image_size)})
        out = Path(settings["out"] or Path(settings["model"]) / f"metrics-{protocol.name}.json")
        require_writable(out.parent)
        count, classes = settings["n"] or protocol.samples, len(pipe.labels("all"))
        labels = torch.arange(count) * classes // count  # counts differ by one at most
        seeds = range(settings["seed"], settings["seed"] + count)
        sampling = {k: settings[k] for k in SETTINGS if settings.get(k) is not None}
        drawn = pipe.batches(
            labels.tolist(),
            list(seeds),
            batch_size=settings["batch_size"],
            decoder=build(settings["decoder"]) if settings.get("decoder") else None,
            **sampling,
        )
        about = {
            "model": str(settings["model"]),
            "provenance": pipe.provenance,
            "sampling": {**pipe.defaults, **sampling, "seed": settings["seed"]},
        }
        result = evaluate(
            (batch.images for batch in drawn),
            protocol=protocol,
            labels=labels,
            source=source,
            out=out,
            about=about,
            **options,
        )
    show(summary(result))
    show(f"written to {out}")


if __name__ == "__main__":
    run(main, "evaluate")
