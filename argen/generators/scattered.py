"""Codes fed out of order: for strategies that leave gaps and fill them later (ZipAR)."""

from __future__ import annotations

import torch
from torch import Tensor

from argen.generators.next_token import NextToken, NextTokenState, mask_rows
from argen.layers.cache import Window
from argen.layers.masks import dense_mask


def predict_after(
    generator: NextToken, state: NextTokenState, codes: Tensor, steps: Tensor, seen: Tensor
) -> Tensor:
    """Return the parameters (R, n, ...) of the steps that follow scattered ones.

    Every step sees the ones before it that have been fed; what is fed stays in the cache at its
    own place, and feeding a step again replaces it.

    Args:
        generator: any next-token generator.
        state: after a first `predict`, which feeds the prefix.
        codes: codes (R, n, ...) to feed.
        steps: their steps (n,).
        seen: which steps have been fed so far or are now, boolean (L,).
    """
    T, L = generator.prefix_length, generator.spec.length
    slots, reach = T + steps, T + L - 1
    keys = torch.arange(reach, device=codes.device)
    mask = dense_mask(generator._pattern(state.cond), slots, keys, rows=mask_rows(state.cond))
    state.hidden = generator._run(
        generator._embed(codes, steps, state.order),
        slots,
        state.cond,
        mask=mask & torch.cat((seen.new_ones(T), seen[: L - 1])),
        cache=state.cache,
        window=Window(start=0, n=len(steps), reach=reach, at=slots),
    )
    return generator.head(state.hidden)
