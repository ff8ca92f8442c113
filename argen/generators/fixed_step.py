"""One code a pass in shapes that never change: what compilers and CUDA graphs need.

`NextToken.predict` slices the cache to what is filled, which is the least work for the processor
that runs it directly. Here the count of codes is a number on the device and attention reads all
slots under a mask, so that one recorded pass serves every step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from argen.generators.next_token import NextToken, NextTokenState, mask_rows
from argen.layers.cache import Window
from argen.layers.masks import dense_mask


def predict_at(generator: NextToken, state: NextTokenState, at: Tensor) -> Tensor:
    """Return the parameters (R, 1, ...) of the step after `at`; the same as `predict` gives.

    Args:
        generator: the network.
        state: from `start`, with the codes of all steps up to `at` in place and all but the last
            of them fed. Keys and values of step `at` are written, nothing else changes.
        at: the last step with a code, long (1,).
    """
    slots, cache = generator.prefix_length + at, state.cache
    window = Window(start=0, n=1, reach=cache.slots, at=slots)
    keys = torch.arange(cache.slots, device=at.device)
    mask = dense_mask(generator._pattern(state.cond), slots, keys, rows=mask_rows(state.cond))
    x_R1D = generator._embed(state.codes.index_select(1, at), at, state.order)
    hidden = generator._run(x_R1D, slots, state.cond, mask=mask, cache=cache, window=window)
    return generator.head(hidden)
