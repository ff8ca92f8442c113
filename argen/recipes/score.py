"""`argen evaluate`: one score of a model, of reconstructions, or of images that somebody made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from argen.build import build, build_stored
from argen.data.images import ImageSource
from argen.errors import UserError
from argen.evaluation.code_stats.page import write_page
from argen.evaluation.code_stats.report import in_words, token_statistics
from argen.evaluation.generated import Generated
from argen.evaluation.paired import Paired
from argen.evaluation.reconstructed import reconstructions, side
from argen.evaluation.reference import Reference
from argen.evaluation.reference_making import open_reference
from argen.evaluation.report import evaluate, summary
from argen.evaluation.sample_files import labels_in, open_samples
from argen.pipeline import Pipeline, load
from argen.pipeline.settings import effective
from argen.pretrained.base import FeatureExtractor
from argen.recipes.captions import evaluation_prompts
from argen.recipes.score_request import ScoreRequest
from argen.runtime.command import require_writable
from argen.runtime.distributed import own_device
from argen.runtime.files import write_json
from argen.runtime.provenance import provenance


def score(request: ScoreRequest) -> list[str]:
    """Score a model, its reconstructions or given images; returns the lines to print.

    Raises:
        UserError: something is missing, does not fit, or is too little.
    """
    require_writable(request.result_file.parent)
    lines: list[str] = []
    if request.subject == "samples":
        result = _score_samples(request)
    elif request.subject == "reconstruction":
        result = _score_reconstructions(request, open_model(request))
    else:
        pipe = open_model(request)
        result, lines = score_model(request, pipe, data_of(request, pipe))
    return [*lines, summary(result), f"written to {request.result_file}"]


def score_model(
    request: ScoreRequest,
    pipe: Pipeline,
    source: ImageSource | None,
    *,
    extractor: FeatureExtractor | None = None,
    reference: Reference | None = None,
    about: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Sample with a model and score the images.

    Args:
        request: how.
        pipe: the model, in the precision that the request names.
        source: the data it is compared with; None where the protocol needs none.
        extractor: the feature network, where it is there already.
        reference: likewise.
        about: what else is recorded.

    Returns:
        the result, which is in the request's file too, and lines to print before it.

    Raises:
        UserError: a protocol of reconstructions, or too few images.
    """
    protocol, out = request.protocol, request.result_file
    if protocol.paired:
        raise UserError(f"Protocol {protocol.name} scores a tokenizer: add reconstruction=true.")
    prompts, labels = evaluation_prompts(pipe, source, request.count)
    samples = Generated(
        pipe,
        prompts=prompts,
        labels=labels.tolist(),
        seed=request.seed,
        directory=out.parent,
        batch_size=request.batch_size,
        decoder=build(request.decoder, trust=True) if request.decoder else None,
        rounding=protocol.rounding,
        precision=request.precision,
        **request.sampling,
    )
    result = evaluate(
        ((images, index) for index, images, _ in samples.batches()),
        protocol=protocol,
        labels=labels,
        source=source,
        out=out,
        about={
            "model": str(request.where),
            "provenance": pipe.provenance,
            "sampling": {
                **effective(request.sampling, pipe.defaults),
                "seed": request.seed,
                "precision": request.precision,
                "decoder": type(samples.decoder).__name__,
                "exact": samples.decoder.exact,
            },
            **(about or {}),
        },
        extractor=extractor,
        **_options(request, reference),
    )
    lines = []
    if request.export:
        samples.export(out.with_suffix(".npz"))
        lines.append(f"images for ADM's script in {out.with_suffix('.npz')}")
    if not request.keep_samples:
        samples.remove()
    return result, lines


def _score_reconstructions(request: ScoreRequest, pipe: Pipeline) -> dict[str, Any]:
    """Score what a tokenizer makes of held-out images."""
    protocol = request.protocol
    if not protocol.paired:
        raise UserError(
            f"Protocol {protocol.name} does not compare reconstructions with their originals: use "
            "protocol=reconstruction_lite or protocol=rfid_imagenet_val."
        )
    source = data_of(request, pipe)
    if source is None:
        raise UserError("Say which images: data=folder data.path=DIR.")
    dataset = side(source, request.split)
    paired = Paired(
        pipe.tokenizer.spec, lpips_path=request.lpips_path, device=own_device(request.device)
    )
    batches = reconstructions(pipe, dataset, paired, batch_size=request.batch_size)
    return evaluate(
        ((images, index) for index, images in batches),
        protocol=protocol,
        source=source,
        samples=len(dataset),
        originals=dataset,
        paired=paired,
        out=request.result_file,
        about={"model": str(request.where), "split": request.split},
        **_options(request),
    )


def _score_samples(request: ScoreRequest) -> dict[str, Any]:
    """Score images that somebody made."""
    assert request.where is not None
    protocol, data = request.protocol, request.data
    samples = open_samples(request.where)
    if data is None and protocol.reference == "train" and request.reference is None:
        raise UserError(
            "Say what the images are compared with: data=folder data.path=DIR, or reference=FILE."
        )
    source = build({**data, "image_size": list(samples.size)}, trust=True) if data else None
    return evaluate(
        ((images, index) for index, images in samples.batches(request.batch_size)),
        protocol=protocol,
        labels=samples.labels if source is None else labels_in(samples, source.classes),
        source=source,
        samples=samples.count,
        out=request.result_file,
        about={"images": samples.name, "image_size": list(samples.size)},
        **_options(request),
    )


def keep_reference(request: ScoreRequest) -> list[str]:
    """Make a reference of images and write it; returns the lines to print.

    Raises:
        UserError: images that cannot be read, or missing weights.
    """
    assert request.save is not None
    assert request.reference is not None
    require_writable(request.save.parent)
    open_reference(
        request.reference,
        request.protocol,
        weights_path=request.features_path,
        device=own_device(request.device),
        batch_size=request.batch_size,
    ).save(request.save)
    return [f"reference written to {request.save}"]


def look_at_codes(request: ScoreRequest) -> list[str]:
    """Measure codes, write the numbers and a page of plots; returns the lines to print.

    Raises:
        UserError: no codes, or continuous ones.
    """
    assert request.where is not None
    out = request.result_file
    page = out.with_suffix(".png")
    require_writable(out.parent)
    found = token_statistics(request.where, max_images=request.n, seed=request.seed)
    write_page(page, found)
    write_json(out, found | provenance())
    return [*in_words(found), f"written to {out} and {page}"]


def open_model(request: ScoreRequest) -> Pipeline:
    """Return the model that is scored, in the precision that was asked for."""
    assert request.where is not None
    pipe = load(
        request.where,
        device=own_device(request.device),
        trust=request.trust,
        text_encoder=request.text_encoder,
    )
    return pipe.to_precision(request.precision)


def data_of(request: ScoreRequest, pipe: Pipeline) -> ImageSource | None:
    """Return the data set that a model's score needs, or None where it needs none.

    Raises:
        UserError: it needs one, and neither the request nor the model says which.
    """
    size = {"image_size": list(pipe.tokenizer.image_size)}
    if request.data:
        return build({**request.data, **size}, trust=True)
    data = pipe.provenance.get("data_config")
    if data is None:
        if request.protocol.reference not in ("train", "originals") or request.reference:
            return None
        raise UserError("This model does not say what it was trained on; give data=CHOICE.")
    return build_stored(
        {**data, **size} if isinstance(data, dict) else data,
        ImageSource,
        source=Path(str(request.where)) / "config.json",
        trust=request.trust,
        functions="data",
    )


def _options(request: ScoreRequest, reference: Reference | None = None) -> dict[str, Any]:
    """Return the options of `Scorer` that every score takes from the request."""
    return {
        "quick": request.quick,
        "reference": reference or request.reference,
        "weights_path": request.features_path,
        "device": own_device(request.device),
        "batch_size": request.batch_size,
    }
