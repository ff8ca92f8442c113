"""How far classes differ in the codes they use.

Shapes: N images, L positions, K words that occur, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from argen.evaluation.code_stats.information import jensen_shannon, mutual_information

PAIRWISE = 32  # classes up to which every pair is compared


def class_divergence(
    ids_NL: np.ndarray, labels_N: np.ndarray, names: tuple[str, ...], *, seed: int = 0
) -> dict[str, Any] | None:
    """Return Jensen-Shannon divergences of the classes' unigrams, in bits.

    `information_bits` is the divergence of all classes weighed by their sizes, which equals what a
    code tells about the class; `chance_bits` is the same with classes shuffled among images. Per
    class: the divergence from the other classes together (0: the same codes, 1: none in common),
    and its chance value. Small classes have a large one: compare the two.

    Args:
        ids_NL: whole numbers in [0, K).
        labels_N: class of each image.
        names: by label.
        seed: of the shuffle.

    Returns:
        None with fewer than two classes.
    """
    present = np.unique(labels_N)
    if len(present) < 2:
        return None
    shuffled = np.random.default_rng(seed).permutation(labels_N)
    rows = [
        {
            "class": names[label] if label < len(names) else str(label),
            "images": int((labels_N == label).sum()),
            "bits": _against_rest(ids_NL, labels_N == label),
            "chance_bits": _against_rest(ids_NL, shuffled == label),
        }
        for label in present.tolist()
    ]
    return {
        "information_bits": _told(ids_NL, labels_N),
        "chance_bits": _told(ids_NL, shuffled),
        "classes": rows,
        "pairwise_bits": _pairwise(ids_NL, labels_N, present) if len(rows) <= PAIRWISE else None,
    }


def _told(ids_NL: np.ndarray, labels_N: np.ndarray) -> float:
    return mutual_information(np.broadcast_to(labels_N[:, None], ids_NL.shape), ids_NL)


def _unigram(ids: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(ids.reshape(-1), minlength=size)


def _against_rest(ids_NL: np.ndarray, own_N: np.ndarray) -> float:
    size = int(ids_NL.max()) + 1
    return jensen_shannon(_unigram(ids_NL[own_N], size), _unigram(ids_NL[~own_N], size))


def _pairwise(ids_NL: np.ndarray, labels_N: np.ndarray, present: np.ndarray) -> list[list[float]]:
    size = int(ids_NL.max()) + 1
    unigrams = [_unigram(ids_NL[labels_N == label], size) for label in present]
    return [[jensen_shannon(a, b) for b in unigrams] for a in unigrams]
