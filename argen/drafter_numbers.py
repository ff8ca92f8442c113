"""What a trained drafter is worth: its loss on held-out codes, and the codes that a pass makes."""

from __future__ import annotations

from typing import Literal

import torch

from argen.controls import controls
from argen.data.codes import CodeDataset
from argen.decoding.relaxed import Relaxed
from argen.device import full_precision
from argen.generators.drafter_target import require_target
from argen.generators.feature_drafter import FeatureDrafter
from argen.layers.noise import SeededNoise
from argen.pipeline import Pipeline

PICTURES = 8  # drawn to count passes
TREES: tuple[Literal["dynamic", "static"], ...] = ("dynamic", "static")


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
    over the passes of a picture, the mean over a few that `decoder=relaxed` draws with either tree
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

    batch = _batch(val, range(0, len(val), -(-len(val) // PICTURES)), device)
    cond = target.conditioner(target.conditioner.of_batch(batch))
    guidance, filters = controls({}, pipe.defaults)
    noise = SeededNoise(range(len(cond)), device=device)
    for tree in TREES:
        with full_precision(device):
            drawn = Relaxed(drafter, k=0, tree=tree)(
                target, cond, guidance=guidance, filters=filters, noise=noise
            )
        assert drawn.accepted is not None
        passes = (drawn.accepted > 0).sum(0).double()
        result[f"codes_per_pass_{tree}"] = float((target.spec.length / passes).mean())
    return result


def _batch(val: CodeDataset, numbers: range, device: torch.device) -> dict[str, torch.Tensor]:
    items = [val[i] for i in numbers]
    return {key: torch.stack([item[key] for item in items]).to(device) for key in items[0]}
