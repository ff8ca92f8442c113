"""Sequential sampling around codes that are given beforehand: completion and inpainting.

A run of given codes is fed in one pass where the generator can score drafts, and that pass also
predicts what follows the run. Codes sampled before a given one do not see it.

Shapes: B samples, R rows (samples, doubled under guidance), n positions of a run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from argen.decoding.base import DecodeResult
from argen.decoding.context import SamplingContext
from argen.decoding.group_order import in_position_order, ordered_groups
from argen.decoding.guidance import repeat_for_cfg
from argen.decoding.known import Known
from argen.generators.base import Generator
from argen.generators.conditioning import Cond


def complete(
    generator: Generator, cond: Cond, context: SamplingContext, order: str
) -> DecodeResult:
    """Sample the codes that `context.known` does not give, group after group.

    Args:
        generator: any generator with an order.
        cond: conditions of B = len(cond) samples.
        context: with known codes; its observer is told of sampled groups alone.
        order: see `ordered_groups`.
    """
    assert context.known is not None
    B, guided, head = len(cond), context.guidance.active, generator.head
    device = next(generator.parameters()).device
    known = Known.at(*context.known, spec=generator.spec, batch=B, device=device)
    groups, options = ordered_groups(generator, context, order, batch=B, known=known)
    runs = [0] * len(groups)
    if generator.plan.lookahead:
        runs = known_runs(known, groups)
        options["longest_draft"] = max(runs)
    state = generator.start(context.guidance.rows(generator, cond), **options)
    sampled: list[Tensor] = []
    passes, step = 0, 0
    while step < len(groups):
        if runs[step]:
            given = known.codes_at(groups[step : step + runs[step]])
            sampled.append(given)
            step += runs[step]
            if step == len(groups):
                break
            outputs = feed_known(generator, state, repeat_for_cfg(given, guided))
        else:
            outputs = generator.predict(state)
        passes, positions = passes + 1, groups[step]
        guidance = context.guidance.step(step, len(groups))
        codes = head.sample(
            outputs,
            guidance=guidance,
            filters=context.filters,
            noise=context.noise,
            positions=positions,
        )
        codes = known.fill(codes, positions)
        generator.commit(state, repeat_for_cfg(codes, guided))
        sampled.append(codes)
        if context.observer is not None:
            context.observer(positions, codes, head.guided(outputs, guidance))
        step += 1
    return DecodeResult(in_position_order(sampled, groups), passes=passes)


def feed_known(generator: Generator, state: Any, codes: Tensor) -> Tensor:
    """Fix a run of given codes in one pass.

    Args:
        generator: one that can score drafts.
        state: of the generator, changed in place.
        codes: the next codes (R, n) or (R, n, G).

    Returns:
        the outputs (R, 1, ...) for the code that follows them.
    """
    outputs = generator.predict(state, codes)
    generator.commit(state, codes)
    return outputs[:, -1:]


def known_runs(known: Known, groups: list[Tensor]) -> list[int]:
    """Return for each step how many single-code groups from it on are given in every sample."""
    row = torch.arange(len(known.codes), device=known.mask_BL.device)[:, None]
    whole = [bool(known.mask_BL[row, positions].all()) for positions in groups]
    runs = [0] * (len(groups) + 1)
    for step in range(len(groups) - 1, -1, -1):
        runs[step] = runs[step + 1] + 1 if whole[step] else 0
    return runs[:-1]
