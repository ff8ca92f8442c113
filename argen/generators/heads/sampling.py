"""One token of a distribution by one uniform number: inversion of the cumulative distribution."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_categorical(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return the ids (...), long, that uniform numbers pick.

    Args:
        logits: (..., V), float; -inf excludes a token.
        uniform: (...), in (0, 1).
    """
    return sample_probs(torch.softmax(logits, dim=-1), uniform)


def sample_probs(probs: Tensor, uniform: Tensor) -> Tensor:
    """Return the first ids whose cumulative probability exceeds the uniform number.

    Args:
        probs: (..., V), not negative; need not sum to one.
        uniform: (...), in (0, 1).

    Returns:
        ids (...), long; never a token of probability zero.
    """
    # In float32 the sums of a large vocabulary round whole tokens away.
    return invert_cdf(probs.double().cumsum(-1), uniform[..., None])[..., 0]


def invert_cdf(cdf: Tensor, uniform: Tensor) -> Tensor:
    """Return the first ids whose cumulative probability exceeds the uniform numbers.

    Args:
        cdf: cumulative sums (..., V), float64; the last need not be one.
        uniform: (..., m), in (0, 1).

    Returns:
        ids (..., m), long; never a token of probability zero.
    """
    # Scaling by the last entry keeps rounding from pointing past the end, and `right=True`
    # never picks a token of probability zero.
    target = uniform.double() * cdf[..., -1:]
    ids = torch.searchsorted(cdf, target, right=True)
    return torch.minimum(ids, (cdf < cdf[..., -1:]).sum(-1, keepdim=True))
