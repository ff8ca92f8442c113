"""Replays the quantisers of vector-quantize-pytorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from argen.interop.base import Imported
from argen.tokenizers.quantizers.base import Quantized, Quantizer
from argen.tokenizers.quantizers.fsq import FSQ
from argen.tokenizers.quantizers.grouped import Grouped
from argen.tokenizers.quantizers.projected import Projected
from argen.tokenizers.quantizers.residual import Residual
from argen.tokenizers.quantizers.simvq import SimVQ
from replays import vector_quantize_pytorch as lucidrains
from replays.fixture import Fixture

SYSTEMS = (
    "quantizer-bsq",
    "quantizer-fsq",
    "quantizer-fsq-symmetric",
    "quantizer-lfq",
    "quantizer-rvq",
    "quantizer-simvq",
    "quantizer-vq",
    "quantizer-vq-cosine",
)

LOSSES = {
    "sample_entropy": "per_sample_entropy",
    "batch_entropy": "batch_entropy",
    "commitment": "commitment",
}


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a quantiser fixture."""
    name, config = lucidrains.kind(fixture.card["class"]), fixture.config
    module = Imported(
        lucidrains.quantizer_config(name, config),
        lucidrains.quantizer_weights(name, config, fixture.weights),
        fixture.name,
    ).build()
    assert isinstance(module, Quantizer)
    x = fixture["input"]
    first = _channels_first(name, config, x)

    def last(t: Tensor) -> Tensor:
        return t.movedim(1, -1) if first else t

    def back(t: Tensor) -> Tensor:
        return t.movedim(-1, 1) if first else t

    inner = module.quantizer if isinstance(module, Projected) else module
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        evaluated = module(last(x))
        ids = evaluated.ids
        assert ids is not None
        looked_up = back(module.lookup(ids))
        # The library keeps a trailing axis for a single group where asked to.
        kept = ids[..., None] if _keeps_axis(config, module) else ids
        found |= {
            "quantized": back(evaluated.z),
            "indices": kept,
            "codes_from_indices": looked_up,
            "output_from_indices": looked_up,
        }
        if isinstance(inner, Grouped) and inner.shared and inner is module:
            # Heads that share a codebook are not joined by the library's look-up.
            found["output_from_indices"] = looked_up.unflatten(-1, (inner.shared, -1))
        if isinstance(inner, FSQ):
            digits = inner.digits(ids)
            found["level_indices"] = digits[..., None, :] if kept is not ids else digits
        if isinstance(inner, SimVQ):
            found["codebook"] = inner.rows()
        if isinstance(inner, Residual):
            found["codes_per_level"] = torch.stack(inner.lookup_levels(ids))
    return found | _training(fixture, module, inner, last, back)


def _channels_first(name: str, config: Mapping[str, Any], x: Tensor) -> bool:
    if name in ("FSQ", "LFQ"):
        given = config.get("channel_first")
        return x.ndim >= 4 if given is None or (name == "FSQ" and not given) else bool(given)
    return bool(
        config.get("channel_first")
        or config.get("accept_image_fmap")
        or config.get("accept_3d_fmap")
        or config.get("channel_last") is False
    )


def _keeps_axis(config: Mapping[str, Any], module: Quantizer) -> bool:
    return bool(config.get("keep_num_codebooks_dim")) and len(module.vocab_sizes) == 1


def _training(
    fixture: Fixture, module: Quantizer, inner: Quantizer, last: Any, back: Any
) -> dict[str, Tensor]:
    name, config = lucidrains.kind(fixture.card["class"]), fixture.config
    weights = lucidrains.loss_weights(name, config)
    x = fixture["input"].clone().requires_grad_(True)
    before = {k: v.clone() for k, v in lucidrains.reference_state(module).items()}
    module.train()

    def total(quantized: Quantized) -> Tensor:
        losses = {k: v for k, v in quantized.losses.items() if k in weights}
        return sum((weights[k] * v for k, v in losses.items()), x.new_zeros(()))

    if isinstance(inner, Residual):
        into, out = (module.into, module.back) if inner is not module else (_same, _same)
        levels = inner.by_level(into(last(x)))
        z = back(out(torch.stack([level.z for level in levels]).sum(0)))
        loss = torch.stack([total(level) for level in levels])
    else:
        quantized = module(last(x))
        z, loss = back(quantized.z), total(quantized)
    found = {
        "train_quantized": z.detach(),
        "train_loss": loss.detach(),
        "aux_loss": loss.detach(),
        "commit_loss": loss.detach(),
    }
    if not isinstance(inner, Residual):
        found |= {LOSSES[k]: v.detach() for k, v in quantized.losses.items() if k in LOSSES}
    if "cotangent" in fixture.io:
        scalar = (fixture["cotangent"] * z).sum() + loss.sum()
        (found["grad_input"],) = torch.autograd.grad(scalar, x)
    if name == "LFQ" and not weights["commitment"]:
        found["commitment"] = x.new_zeros(())  # The library leaves out what weighs nothing.
    state = before if _restored(fixture) else lucidrains.reference_state(module)
    if isinstance(inner, Residual) and inner.shared:
        for key in [k for k in state if k.startswith("layers.0.")]:
            for level in range(1, inner.shared):
                state[key.replace("layers.0.", f"layers.{level}.", 1)] = state[key]
    # Moving averages that a codebook trained by gradient does not keep stay as they were.
    kept = {k: v for k, v in fixture.weights.items() if k not in state}
    return found | {f"after.{key}": value for key, value in (kept | state).items()}


def _restored(fixture: Fixture) -> bool:
    """Whether the recorded `after.*` buffers are, bit by bit, those from before the step.

    A codebook that follows moving averages cannot are frozen: such a recording held on to live
    buffers, which were set back before they were written. It says nothing of the step; then only
    the translation of the buffers is compared, and the step itself is left to the tests.
    """
    names = [name for name in fixture.expected if name.startswith("after.")]
    weights = fixture.weights
    return all(torch.equal(fixture[name], weights[name.removeprefix("after.")]) for name in names)


def _same(x: Tensor) -> Tensor:
    return x
