"""Entropies, mutual information and divergences of counted things, in bits.

All are plug-in estimates: frequencies stand for probabilities. Few counts make entropies too small
and mutual information too large, so each has a correction or a chance value to stand beside it.
"""

from __future__ import annotations

import math

import numpy as np


def entropy_bits(counts: np.ndarray) -> float:
    """Return the entropy in bits of a distribution given by counts (any shape)."""
    filled = counts[counts > 0].astype(np.float64)
    shares = filled / filled.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # not minus zero


def miller_madow(counts: np.ndarray) -> float:
    """Return the bits that plug-in entropy misses to first order: (K - 1) / (2 n ln 2).

    Miller (1955); K things that occur in n counts. An under-estimate where most occur once.
    """
    return float((np.count_nonzero(counts) - 1) / (2 * counts.sum() * math.log(2)))


def counts_of(values: np.ndarray) -> np.ndarray:
    """Return how often each value occurs, (K,), in the order of the values."""
    return np.unique(values, return_counts=True)[1]


def paired(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return one number for each pair of whole numbers of the same shape."""
    return first * (int(second.max()) + 1) + second


def mutual_information(first: np.ndarray, second: np.ndarray) -> float:
    """Return the plug-in mutual information in bits of paired whole numbers >= 0."""
    pairs = entropy_bits(counts_of(paired(first, second)))
    return entropy_bits(counts_of(first)) + entropy_bits(counts_of(second)) - pairs


def jensen_shannon(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence, in [0, 1] bits, of counts over the same things."""
    p, q = first / first.sum(), second / second.sum()
    middle = (p + q) / 2
    return max(0.0, entropy_bits(middle) - (entropy_bits(p) + entropy_bits(q)) / 2)
