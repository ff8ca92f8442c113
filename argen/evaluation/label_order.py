"""The order of labels and captions in a score: every run of consecutive images is balanced.

The inception score compares consecutive splits, and a run that was stopped has the first images
alone, so an order by class would make both of them wrong.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def balanced_labels(count: int, classes: int) -> Tensor:
    """Return labels (count,), every class equally often, counts differing by one at most.

    Classes follow one another as 0, 1, ..., so that any run of images holds each equally often up
    to one. Where the last round has not room for all of them, it takes classes that are spread
    evenly over their numbers.
    """
    rounds, rest = divmod(count, classes)
    last = torch.arange(rest) * classes // max(1, rest)
    return torch.cat([torch.arange(classes).repeat(rounds), last[spread_order(rest)]])


def spread_order(count: int) -> Tensor:
    """Return a permutation of 0..count-1 in which every run of entries is spread evenly.

    Entry i is the rank of the fractional part of i times the golden ratio, whose runs miss an even
    spread by no more than the logarithm of their length.
    """
    golden = (math.sqrt(5) - 1) / 2
    return (torch.arange(count, dtype=torch.float64) * golden % 1).argsort().argsort()
