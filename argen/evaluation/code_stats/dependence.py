"""What codes tell about their neighbours: mutual information on the grid, n-grams in raster order.

Shapes: N images, h w code grid, L positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from argen.evaluation.code_stats.information import (
    counts_of,
    entropy_bits,
    mutual_information,
    paired,
)
from argen.evaluation.code_stats.words import joint_ids

DISTANCES = (1, 2, 4, 8)


def neighbour_information(ids_Nhw: np.ndarray, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return the mutual information of codes some steps apart, along rows and down columns.

    Pairs of all images and positions are counted together. For each direction and distance:
    `bits`, the plug-in value; `chance_bits`, the same with second halves shuffled over all pairs,
    which is what too few counts make of independent codes; `position_bits`, with second halves of
    another image at the same place, which is chance and what place alone tells;
    `corrected_bits`, `bits` less `chance_bits`. With far fewer pairs than K^2 the correction is
    too large, and the corrected value too small.

    Args:
        ids_Nhw: whole numbers.
        seed: of the shuffles.
    """
    rng, found = np.random.default_rng(seed), []
    _, h, w = ids_Nhw.shape
    for direction, side in (("right", w), ("down", h)):
        for step in (d for d in DISTANCES if d < side):
            if direction == "right":
                first, second = ids_Nhw[:, :, :-step], ids_Nhw[:, :, step:]
            else:
                first, second = ids_Nhw[:, :-step], ids_Nhw[:, step:]
            bits = mutual_information(first, second)
            anywhere = rng.permutation(second.reshape(-1)).reshape(second.shape)
            chance = mutual_information(first, anywhere)
            found.append(
                {
                    "direction": direction,
                    "distance": step,
                    "pairs": int(first.size),
                    "bits": bits,
                    "chance_bits": chance,
                    "position_bits": mutual_information(first, second[_others(len(second), rng)]),
                    "corrected_bits": bits - chance,
                }
            )
    return found


def ngrams(ids_NL: np.ndarray, *, longest: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    """Return entropies of n codes in a row, n = 1..longest, in the codes' own order.

    `conditional_bits` is what the last of the n takes when those before are known, h_n = H_n -
    H_(n-1); `shuffled_conditional_bits` the same after all codes were shuffled, so that only their
    frequencies are left: the gap below it is structure, and where it falls itself with n, counts
    are running out. `once` is the share of n-grams that were seen only once.

    Args:
        ids_NL: whole numbers.
        longest: largest n.
        seed: of the shuffle.
    """
    shuffled = np.random.default_rng(seed).permutation(ids_NL.reshape(-1)).reshape(ids_NL.shape)
    rows: list[dict[str, Any]] = []
    before, before_shuffled = 0.0, 0.0
    for n in range(1, min(longest, ids_NL.shape[1]) + 1):
        counts = counts_of(_windows(ids_NL, n))
        bits, chance = entropy_bits(counts), entropy_bits(counts_of(_windows(shuffled, n)))
        rows.append(
            {
                "n": n,
                "distinct": len(counts),
                "once": float((counts == 1).mean()),
                "entropy_bits": bits,
                "conditional_bits": bits - before,
                "shuffled_conditional_bits": chance - before_shuffled,
            }
        )
        before, before_shuffled = bits, chance
    return rows


def _windows(ids_NL: np.ndarray, n: int) -> np.ndarray:
    """Return one number for each run of n codes, (N, L - n + 1)."""
    last = ids_NL.shape[1] - n + 1
    joint = ids_NL[:, :last]
    for shift in range(1, n):
        joint = joint_ids(paired(joint, ids_NL[:, shift : shift + last])[..., None])
    return joint


def _others(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random pairing of images in which none meets itself."""
    order = rng.permutation(count)
    partner = np.empty(count, dtype=np.int64)
    partner[order] = np.roll(order, 1)
    return partner
