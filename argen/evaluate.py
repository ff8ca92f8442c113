"""Score a model, images or reconstructions: `python -m argen.evaluate --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from argen.errors import UserError
from argen.runtime.command import require_positive, require_writable, run, show

WHAT = ("model", "samples", "tokens")


def main(config: Any) -> None:
    """Draw or read what is scored, score it, write the JSON."""
    from argen.evaluation.report import summary
    from argen.evaluation.sweep import SWEPT
    from argen.layers.inference_precision import check_precision
    from argen.runtime.command import plain
    from argen.runtime.distributed import process_group, rank_and_world_size

    settings = plain(config)
    require_positive(settings, "batch_size")
    check_precision(settings["precision"])
    only_reference = settings["save"] is not None
    given = [name for name in WHAT if settings.get(name) is not None]
    if only_reference and settings["reference"] is None:
        raise UserError("save=FILE keeps a reference: say of which images, reference=IMAGES.")
    if len(given) != 1 and not (only_reference and not given):
        raise UserError(
            "Give model=DIR to score a model, samples=IMAGES to score images somebody made, or "
            "tokens=CODES to look at codes."
        )
    with process_group(settings["device"]):
        if only_reference:
            lines = [f"reference written to {_keep_reference(settings)}"]
        elif settings["tokens"] is not None:
            lines = _look_at_tokens(settings)
        elif any(settings["sweep"].get(name) is not None for name in SWEPT):
            lines = _sweep(settings)
        else:
            result, out = _score(settings)
            lines = [summary(result), f"written to {out}"]
        if rank_and_world_size()[0] == 0:
            for line in lines:
                show(line)


def _score(settings: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """Score what the settings name; returns the result and where it was written."""
    if settings["samples"] is not None:
        return _score_samples(settings)
    if settings["reconstruction"]:
        return _score_reconstructions(settings)
    return _score_model(settings)


def _sweep(settings: dict[str, Any]) -> list[str]:
    """Score a model at every point of a sweep."""
    from argen.evaluation.protocol import Protocol
    from argen.recipes.sweep import run_sweep
    from argen.runtime.distributed import own_device

    if settings["model"] is None or settings["reconstruction"]:
        raise UserError("A sweep is over the sampling settings of a model: give model=DIR.")
    pipe = _pipeline(settings)
    source = _source(settings, pipe, Protocol.from_dict(settings["protocol"]))
    settings = {**settings, "torch_device": own_device(settings["device"])}
    return run_sweep(settings, pipe, source, _score_model)


def _score_samples(settings: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """Score images that somebody made."""
    from argen.build import build
    from argen.evaluation.protocol import Protocol
    from argen.evaluation.report import evaluate
    from argen.evaluation.sample_files import open_samples

    protocol = Protocol.from_dict(settings["protocol"])
    samples = open_samples(settings["samples"])
    data = settings.get("data")
    if data is None and protocol.reference == "train" and settings["reference"] is None:
        raise UserError(
            "Say what the images are compared with: data=folder data.path=DIR, or reference=FILE."
        )
    out = Path(settings["out"] or "metrics.json")
    require_writable(out.parent)
    labels, batch_size = samples.labels, settings["batch_size"]
    result = evaluate(
        ((images, index) for index, images in samples.batches(batch_size)),
        protocol=protocol,
        labels=labels,
        source=build({**data, "image_size": list(samples.size)}, trust=True) if data else None,
        samples=samples.count,
        out=out,
        about={"images": samples.name, "image_size": list(samples.size)},
        **_options(settings, protocol),
    )
    return result, out


def _score_model(settings: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """Draw with a model and score what it drew."""
    from argen.build import build
    from argen.evaluation.generated import Generated
    from argen.evaluation.protocol import Protocol
    from argen.evaluation.report import evaluate
    from argen.pipeline.settings import SETTINGS
    from argen.recipes.captions import evaluation_prompts

    protocol, pipe = Protocol.from_dict(settings["protocol"]), _pipeline(settings)
    if protocol.paired:
        raise UserError(f"Protocol {protocol.name} scores a tokenizer: add reconstruction=true.")
    source, out = _source(settings, pipe, protocol), _out(settings, protocol)
    count = settings["n"] or protocol.samples
    protocol.check_count(count, quick=settings["quick"])
    asked, labels = evaluation_prompts(pipe, source, count)
    sampling = {k: settings[k] for k in SETTINGS if settings.get(k) is not None}
    drawn = Generated(
        pipe,
        asked=asked,
        labels=labels.tolist(),
        seed=settings["seed"],
        directory=out.parent,
        batch_size=settings["batch_size"],
        decoder=build(settings["decoder"], trust=True) if settings.get("decoder") else None,
        rounding=protocol.rounding,
        precision=settings["precision"],
        **sampling,
    )
    result = evaluate(
        ((images, index) for index, images, _ in drawn.batches()),
        protocol=protocol,
        labels=labels,
        source=source,
        out=out,
        about={
            "model": str(settings["model"]),
            "provenance": pipe.provenance,
            "sampling": {
                **pipe.defaults,
                **sampling,
                "seed": settings["seed"],
                "precision": settings["precision"],
                "decoder": type(drawn.decoder).__name__,
                "exact": drawn.decoder.exact,
            },
            **({"sweep_key": settings["sweep_key"]} if "sweep_key" in settings else {}),
        },
        **_options(settings, protocol),
    )
    if settings["export"]:
        drawn.export(out.with_suffix(".npz"))
        show(f"images for ADM's script in {out.with_suffix('.npz')}")
    if not settings["keep_samples"]:
        drawn.remove()
    return result, out


def _score_reconstructions(settings: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """Score what a tokenizer makes of held-out images."""
    from argen.evaluation.paired import Paired
    from argen.evaluation.protocol import Protocol
    from argen.evaluation.reconstructed import reconstructions, side
    from argen.evaluation.report import evaluate

    if settings["precision"] == "int8":
        raise UserError("precision=int8 is of generators: use float32 or bfloat16 here.")
    protocol, pipe = Protocol.from_dict(settings["protocol"]), _pipeline(settings)
    if not protocol.paired:
        raise UserError(
            f"Protocol {protocol.name} does not compare reconstructions with their originals: use "
            "protocol=reconstruction_lite or protocol=rfid_imagenet_val."
        )
    source, out = _source(settings, pipe, protocol), _out(settings, protocol)
    if source is None:
        raise UserError("Say which images: data=folder data.path=DIR.")
    options, dataset = _options(settings, protocol), side(source, settings["split"])
    paired = Paired(
        pipe.tokenizer.spec, lpips_path=settings["lpips_path"], device=options["device"]
    )
    batches = reconstructions(pipe, dataset, paired, batch_size=settings["batch_size"])
    result = evaluate(
        ((images, index) for index, images in batches),
        protocol=protocol,
        source=source,
        samples=len(dataset),
        originals=dataset,
        paired=paired,
        out=out,
        about={"model": str(settings["model"]), "split": settings["split"]},
        **options,
    )
    return result, out


def _keep_reference(settings: dict[str, Any]) -> Path:
    """Make a reference of images and write it."""
    from argen.evaluation.protocol import Protocol
    from argen.evaluation.reference_making import open_reference

    protocol, path = Protocol.from_dict(settings["protocol"]), Path(settings["save"])
    if path.suffix != ".npz":
        raise UserError(f"save={path}: a reference is an .npz file, give it that ending.")
    require_writable(path.parent)
    options = _options(settings, protocol)
    open_reference(
        options["reference"], protocol, weights_path=options["weights_path"],
        device=options["device"], batch_size=options["batch_size"],
    ).save(path)  # fmt: skip
    return path


def _look_at_tokens(settings: dict[str, Any]) -> list[str]:
    """Measure codes; write the numbers and a page of plots; returns what to print."""
    from argen.evaluation.code_stats.page import write_page
    from argen.evaluation.code_stats.report import in_words, token_statistics
    from argen.runtime.files import write_json
    from argen.runtime.provenance import provenance

    out = Path(settings["out"] or "tokens.json")
    page = out.with_suffix(".png")
    require_writable(out.parent)
    found = token_statistics(settings["tokens"], most=settings["n"], seed=settings["seed"])
    write_page(page, found)
    write_json(out, found | provenance())
    return [*in_words(found), f"written to {out} and {page}"]


def _options(settings: dict[str, Any], protocol: Any) -> dict[str, Any]:
    """Return what every score takes."""
    from argen.runtime.distributed import own_device

    return {
        "quick": settings["quick"],
        "reference": settings["reference"],
        "extractor": settings.get("extractor"),
        "weights_path": settings["features_path"],
        "device": own_device(settings["device"]),
        "batch_size": settings["batch_size"],
    }


def _pipeline(settings: dict[str, Any]) -> Any:
    from argen.pipeline import load
    from argen.runtime.distributed import own_device

    if "pipe" in settings:  # of a sweep
        return settings["pipe"]
    pipe = load(
        settings["model"],
        device=own_device(settings["device"]),
        trust=settings["trust"],
        text_encoder=settings.get("text_encoder"),
    )
    return pipe.to_precision(settings["precision"])


def _source(settings: dict[str, Any], pipe: Any, protocol: Any) -> Any:
    """Return the data set that a score needs, or None where it needs none."""
    from argen.build import build, build_stored
    from argen.data.images import ImageSource

    size = {"image_size": list(pipe.tokenizer.image_size)}
    if settings.get("data"):
        return build({**settings["data"], **size}, trust=True)
    data = pipe.provenance.get("data_config")
    if data is None:
        if protocol.reference not in ("train", "originals") or settings["reference"]:
            return None
        raise UserError("This model does not say what it was trained on; give data=CHOICE.")
    return build_stored(
        {**data, **size} if isinstance(data, dict) else data,
        ImageSource,
        source=Path(settings["model"]) / "config.json",
        trust=settings["trust"],
        functions="data",
    )


def _out(settings: dict[str, Any], protocol: Any) -> Path:
    out = Path(settings["out"] or Path(settings["model"]) / f"metrics-{protocol.name}.json")
    require_writable(out.parent)
    return out


if __name__ == "__main__":
    run(main, "evaluate")
