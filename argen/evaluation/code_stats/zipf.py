"""Zipf's law of words, and how fast new ones turn up (Heaps' law)."""

from __future__ import annotations

from typing import Any

import numpy as np

STEEPEST = 20.0


def zipf_fit(counts: np.ndarray) -> dict[str, Any]:
    """Fit frequency ~ rank^-s to counts of words.

    `exponent` is the maximum-likelihood s of the law p(r) = r^-s / sum_k k^-s on the ranks
    1..K of the K words that occur; ranks come from the same counts, which makes s a little too
    large where many words are rare. `misfit` is the largest gap between the fitted and the counted
    cumulative shares (Kolmogorov-Smirnov; 0 is perfect). `least_squares_exponent` is the slope of
    log frequency on log rank over ranks spaced evenly in the logarithm, with its `r_squared`; it is
    what a straight line on the plot shows.

    Args:
        counts: (K,) of words that occur.

    Returns:
        plain numbers; exponents are None with fewer than two words.
    """
    ordered = np.sort(counts[counts > 0])[::-1].astype(np.float64)
    if len(ordered) < 2:
        return {
            "exponent": None,
            "misfit": None,
            "least_squares_exponent": None,
            "r_squared": None,
        }
    logs = np.log(np.arange(1, len(ordered) + 1))
    shares = ordered / ordered.sum()
    exponent = _likeliest(logs, float((shares * logs).sum()))
    misfit = float(np.abs(np.cumsum(_law(logs, exponent)) - np.cumsum(shares)).max())
    x, y = logs[spaced(len(ordered))], np.log(ordered)[spaced(len(ordered))]
    slope, start = np.polyfit(x, y, 1)
    spread = float(((y - y.mean()) ** 2).sum())
    rest = float(((y - start - slope * x) ** 2).sum())
    return {
        "exponent": exponent,
        "misfit": misfit,
        "least_squares_exponent": float(-slope),
        "r_squared": 1 - rest / spread if spread > 0 else None,
    }


def spaced(count: int, points: int = 200) -> np.ndarray:
    """Return at most `points` indices of [0, count), even in the logarithm of index + 1."""
    return np.unique(np.geomspace(1, count, points).round().astype(np.int64)) - 1


def innovation(ids_NL: np.ndarray, *, orders: int = 5, seed: int = 0) -> dict[str, Any]:
    """Count how many words are new as images are looked at one after another.

    The average over random orders of the images. `heaps_exponent` b is the least-squares slope of
    log words on log images: words ~ images^b, 0 when everything is known after one image, 1
    when images share nothing. `last_tenth_new_per_image` is the rate at the end: what one
    more image would add.

    Args:
        ids_NL: whole numbers in [0, K).
        orders: random orders to average.
        seed: of the orders.
    """
    count = len(ids_NL)
    rng, new_N = np.random.default_rng(seed), np.zeros(count)
    for _ in range(orders):
        shuffled = ids_NL[rng.permutation(count)]
        first = np.unique(shuffled, return_index=True)[1] // shuffled.shape[1]
        new_N += np.bincount(first, minlength=count) / orders
    known_N, shown = np.cumsum(new_N), spaced(count, 60)
    tail = max(1, count // 10)
    slope = np.polyfit(np.log(shown + 1), np.log(known_N[shown]), 1)[0]
    return {
        "images": (shown + 1).tolist(),
        "words": known_N[shown].tolist(),
        "first_image": float(new_N[0]),
        "last_tenth_new_per_image": float(new_N[-tail:].mean()),
        "heaps_exponent": float(slope),
        "orders": orders,
    }


def _law(logs: np.ndarray, exponent: float) -> np.ndarray:
    weights = np.exp(-exponent * logs)
    return weights / weights.sum()


def _likeliest(logs: np.ndarray, mean_log: float) -> float:
    """Return the s whose law has the counted mean log rank; bisection, the mean falls with s."""
    low, high = 0.0, STEEPEST
    for _ in range(60):
        middle = (low + high) / 2
        if float((_law(logs, middle) * logs).sum()) > mean_log:
            low = middle
        else:
            high = middle
    return (low + high) / 2
