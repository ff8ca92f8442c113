"""What a trained model is worth, in numbers: reconstruction, codes, samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from argen.data.codes import CodeDataset
from argen.data.images import ImageSource
from argen.decoding.context import SamplingContext
from argen.decoding.speculative.relaxed import Relaxed
from argen.errors import UserError
from argen.evaluation.metrics import code_usage, psnr_db, unigram_entropy_bits
from argen.evaluation.report import evaluate
from argen.generators.base import Generator
from argen.generators.drafter.feature_drafter import FeatureDrafter
from argen.generators.drafter.target import require_target
from argen.layers.noise import SeededNoise
from argen.pipeline import Pipeline
from argen.pipeline.keys import image_keys
from argen.pipeline.settings import controls
from argen.recipes.captions import evaluation_prompts
from argen.runtime.device import full_precision
from argen.runtime.provenance import provenance
from argen.tokenizers.base import Tokenizer

IMAGES = 8  # drawn to count passes
TREES: tuple[Literal["dynamic", "static"], ...] = ("dynamic", "static")


@torch.inference_mode()
def heldout_psnr(
    tokenizer: Tokenizer, source: ImageSource, device: torch.device
) -> tuple[Tensor, dict[str, float]]:
    """Return the held-out images (N, 3, H, W) and `psnr_heldout_db`, the mean over them."""
    images = torch.stack([source.val[i]["image"] for i in range(len(source.val))])
    decoded = [
        tokenizer.decode(tokenizer.encode(part.to(device))).cpu().clamp(-1, 1)
        for part in images.split(64)
    ]
    return images, {"psnr_heldout_db": psnr_db(torch.cat(decoded), images)}


def code_numbers(
    pipe: Pipeline, codes: Mapping[str, CodeDataset], device: torch.device
) -> dict[str, float]:
    """Return how the codes are used, and how well the generator predicts held-out ones.

    `codes_used` is the share of the vocabulary that the stored training codes use, all views
    included; `unigram_bits_per_code` the entropy of the plain view's histogram;
    `bits_per_code_heldout` the generator's loss on held-out codes given their class. Codes that
    are not ids have none of them.
    """
    spec = pipe.tokenizer.spec
    if spec.kind != "discrete" or pipe.generator is None:
        return {}
    ids = torch.stack([codes["train"][i]["codes"] for i in range(len(codes["train"]))])
    result = {"codes_used": code_usage(codes["train"].every_view(), spec)}
    if spec.sub_tokens == 1:
        result["unigram_bits_per_code"] = unigram_entropy_bits(ids, spec.vocab_size)
    bits = heldout_bits(pipe.generator, codes["val"], device)
    return result if bits is None else {"bits_per_code_heldout": bits, **result}


@torch.inference_mode()
def heldout_bits(generator: Generator, val: CodeDataset, device: torch.device) -> float | None:
    """Return the loss of held-out codes in bits a code; None where it is not a likelihood."""
    total = 0.0
    for start in range(0, len(val), 64):
        items = [val[i] for i in range(start, min(start + 64, len(val)))]
        batch = {key: torch.stack([item[key] for item in items]).to(device) for key in items[0]}
        conditioner = generator.conditioner
        output = generator.loss(batch["codes"], conditioner(conditioner.of_batch(batch)))
        if "bits_per_code" not in output.metrics:
            return None
        total += float(output.metrics["bits_per_code"]) * len(items)
    return total / len(val) if math.isfinite(total) else None


def sample_scores(
    pipe: Pipeline,
    source: ImageSource,
    options: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Score fresh samples by a protocol: as many of every class, or the training captions evenly.

    Near-copies are looked for among the reconstructions of the training images.

    Args:
        pipe: draws them.
        source: what they are compared with.
        options: protocol, samples, batch_size.
        seed: of the samples, see `image_keys`.
        device: where features are computed.
    """
    unknown = [key for key in options if key not in ("protocol", "samples", "batch_size")]
    if unknown:
        raise UserError(f"evaluate.{unknown[0]} means nothing; protocol, samples, batch_size do.")
    count = int(options["samples"])
    prompts, labels = evaluation_prompts(pipe, source, count)
    images = torch.stack([source.train[i]["image"] for i in range(len(source.train))])
    copies = [pipe.decode(pipe.encode(part)).cpu() for part in images.split(64)]
    seeds = image_keys(seed, count)
    drawn = pipe.batches(prompts, seeds, batch_size=int(options["batch_size"]))
    return evaluate(
        (batch.images for batch in drawn),
        protocol=options["protocol"],
        labels=labels,
        source=source,
        copies_of=copies,
        quick=True,
        device=device,
        about={"sampling": pipe.defaults},
    )


def run_facts(
    pipe: Pipeline, config: dict[str, Any], device: torch.device, seconds: dict[str, float]
) -> dict[str, Any]:
    """Return what a run was: its name and seed, sizes, where and how long, and provenance.

    Args:
        pipe: what was trained.
        config: the run's.
        device: where it was drawn and scored.
        seconds: of each stage.
    """
    parts = {"tokenizer": pipe.tokenizer, "generator": pipe.generator}
    return {
        "name": config["name"],
        "seed": int(config["seed"]),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "parameters": {k: sum(p.numel() for p in m.parameters()) for k, m in parts.items() if m},
        "seconds": {k: round(v, 1) for k, v in seconds.items()},
        "wall_seconds": round(sum(seconds.values()), 1),
        **provenance(),
    }


@torch.inference_mode()
def drafter_numbers(
    pipe: Pipeline,
    drafter: FeatureDrafter,
    val: CodeDataset,
    *,
    logit_weight: float,
    device: torch.device,
) -> dict[str, float]:
    """Return how well a drafter imitates its generator.

    `loss_heldout`, `feature_heldout` and `logit_heldout` are its loss and the parts of it on
    held-out codes, without noise; `kept_heldout` the share of single drafts that a plain test
    would keep there, without guidance. `codes_per_pass_dynamic` and `codes_per_pass_static` are L
    over the passes of an image, the mean over a few that `decoder=relaxed` draws with either tree
    and k=0, under held-out conditions and the model's own settings.

    Args:
        pipe: the model.
        drafter: trained for its generator.
        val: held-out codes.
        logit_weight: that of the training.
        device: where all of it is.
    """
    assert pipe.generator is not None
    target = require_target(pipe.generator)
    totals: dict[str, float] = {}
    for start in range(0, len(val), 64):
        numbers = range(start, min(start + 64, len(val)))
        batch = _batch(val, numbers, device)
        cond = target.conditioner(target.conditioner.of_batch(batch))
        output = drafter.loss(
            target, batch["codes"], cond, noise_scale=0.0, logit_weight=logit_weight
        )
        for name, value in {"loss": output.loss, **output.metrics}.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(numbers)
    result = {f"{name}_heldout": total / len(val) for name, total in totals.items()}

    batch = _batch(val, range(0, len(val), -(-len(val) // IMAGES)), device)
    cond = target.conditioner(target.conditioner.of_batch(batch))
    guidance, filters = controls({}, pipe.defaults)
    noise = SeededNoise(range(len(cond)), device=device)
    for tree in TREES:
        with full_precision(device):
            drawn = Relaxed(drafter, k=0, tree=tree)(
                target, cond, SamplingContext(guidance=guidance, filters=filters, noise=noise)
            )
        assert drawn.accepted is not None
        passes = (drawn.accepted > 0).sum(0).double()
        result[f"codes_per_pass_{tree}"] = float((target.spec.length / passes).mean())
    return result


def _batch(val: CodeDataset, numbers: range, device: torch.device) -> dict[str, torch.Tensor]:
    items = [val[i] for i in numbers]
    return {key: torch.stack([item[key] for item in items]).to(device) for key in items[0]}
