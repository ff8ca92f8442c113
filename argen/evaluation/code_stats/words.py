"""Codes as words: one whole number a position, whatever the codes are made of.

Shapes: N images, L positions, G sub-tokens or bits, V vocabulary, K words that occur.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from argen.data.codes import CodeDataset
from argen.errors import IncompatibleError, UserError
from argen.spec import CodeSpec

ROOM = 2**62  # joint numbers below it fit int64 with one more factor of two


@dataclass(frozen=True)
class Words:
    """Codes of N images.

    Attributes:
        spec: what they are.
        ids_NL: int64 in [0, K), numbered in the order of the codes; equal codes, equal numbers.
        parts_NLG: the sub-tokens or bits, G = 1 for plain ids.
        labels_N: int64, class of each image.
        classes: class names.
        of: images that there are, of which these N are spread evenly.
    """

    spec: CodeSpec
    ids_NL: np.ndarray
    parts_NLG: np.ndarray
    labels_N: np.ndarray
    classes: tuple[str, ...]
    of: int

    @property
    def distinct(self) -> int:
        """Number K of words that occur."""
        return int(self.ids_NL.max()) + 1

    @property
    def vocabulary_bits(self) -> float:
        """Logarithm to base 2 of V, of the first segment."""
        first = self.spec.segments[0]
        return float(first.bits or sum(math.log2(size) for size in first.vocab_sizes))

    def segments(self) -> list[tuple[tuple[int, int], np.ndarray]]:
        """Return (h, w) and the ids (N, h, w) of each segment."""
        found, start = [], 0
        for segment in self.spec.segments:
            part = self.ids_NL[:, start : start + segment.length]
            found.append((segment.shape, part.reshape(len(part), *segment.shape)))
            start += segment.length
        return found


def read_words(dataset: CodeDataset, *, max_images: int) -> Words:
    """Return the words of a code directory's images, first view (the one not augmented).

    Args:
        dataset: discrete or binary codes.
        max_images: taken, spread evenly over the directory, which may be sorted by class.

    Raises:
        IncompatibleError: continuous codes, which have no vocabulary.
        UserError: fewer than two images.
    """
    spec = dataset.spec
    if spec.kind == "continuous":
        raise IncompatibleError(
            f"{dataset.directory} holds {spec.describe()}: continuous codes have no vocabulary, so "
            "there are no tokens to count; give codes of a discrete or binary tokenizer."
        )
    count = min(len(dataset), max_images)
    if count < 2:
        raise UserError(
            f"Token statistics need at least 2 images, not {count} ({dataset.directory})."
        )
    index_N = np.arange(count, dtype=np.int64) * len(dataset) // count
    parts = np.stack([dataset[int(i)]["codes"].numpy().astype(np.int32) for i in index_N])
    parts_NLG = parts[..., None] if parts.ndim == 2 else parts
    return Words(
        spec=spec,
        ids_NL=joint_ids(parts_NLG),
        parts_NLG=parts_NLG,
        labels_N=dataset.labels.numpy()[index_N],
        classes=dataset.classes,
        of=len(dataset),
    )


def joint_ids(parts: np.ndarray) -> np.ndarray:
    """Return one number for each vector along the last axis, int64 (...), without gaps.

    Numbers follow the vectors' order. Any width and any vocabulary: numbers are closed up
    whenever the next factor would not fit.
    """
    joint, size = np.zeros(parts.shape[:-1], dtype=np.int64), 1
    for column in np.moveaxis(parts, -1, 0):
        base = int(column.max()) + 1
        if size * base > ROOM:
            joint, size = _closed_up(joint)
        joint, size = joint * base + column, size * base
    return _closed_up(joint)[0]


def _closed_up(ids: np.ndarray) -> tuple[np.ndarray, int]:
    known, inverse = np.unique(ids, return_inverse=True)
    return inverse.reshape(ids.shape), len(known)
