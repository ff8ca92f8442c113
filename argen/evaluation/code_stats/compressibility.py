"""How small compressors make codes, beside what their frequencies alone allow."""

from __future__ import annotations

import lzma
import zlib
from typing import Any

import numpy as np
import torch

from argen.evaluation.code_stats.information import counts_of, entropy_bits

MAX_CODES = 2**22  # codes that are compressed; LZMA does about a million a second


def compressibility(ids_NL: np.ndarray, vocabulary_bits: float, *, seed: int = 0) -> dict[str, Any]:
    """Return bits per code of compressors and bounds.

    Codes are written image after image as whole numbers of 1, 2 or 4 bytes; at most 4 million
    are compressed. `shuffled_*` compresses the same codes in random order: what is left is their
    frequencies, and the gap to it is structure in and between images. `adaptive_unigram` is what
    an arithmetic coder pays that starts knowing nothing and counts as it goes
    (Krichevsky-Trofimov).

    Args:
        ids_NL: whole numbers in [0, K).
        vocabulary_bits: log2 of the vocabulary, the price of a code without any model.
        seed: of the shuffle.
    """
    kept = ids_NL[: max(1, MAX_CODES // ids_NL.shape[1])].reshape(-1)
    largest = int(kept.max())
    kind = np.dtype("u1" if largest < 2**8 else "<u2" if largest < 2**16 else "<u4")
    plain = kept.astype(kind)
    shuffled = np.random.default_rng(seed).permutation(plain)
    counts = counts_of(kept)
    return {
        "codes": int(kept.size),
        "bytes_per_code": kind.itemsize,
        "uniform": vocabulary_bits,
        "unigram_entropy": entropy_bits(counts),
        "adaptive_unigram": adaptive_bits(counts, vocabulary_bits),
        "zlib": _zlib(plain),
        "lzma": _lzma(plain),
        "shuffled_zlib": _zlib(shuffled),
        "shuffled_lzma": _lzma(shuffled),
    }


def adaptive_bits(counts: np.ndarray, vocabulary_bits: float) -> float | None:
    """Return bits a code of sequential coding with p(v) = (count_v + 1/2) / (n + V/2).

    It depends on the counts alone: the product is a ratio of gamma functions. None for vocabularies
    so large that V/2 would swallow the counts in float64.
    """
    if vocabulary_bits > 40:
        return None
    half = round(2**vocabulary_bits) / 2
    total = int(counts.sum())
    ends = torch.tensor([total + half, half, 0.5], dtype=torch.float64).lgamma().tolist()
    seen = (torch.from_numpy(counts.astype(np.float64)) + 0.5).lgamma() - ends[2]
    return float((ends[0] - ends[1] - float(seen.sum())) / np.log(2) / total)


def _zlib(codes: np.ndarray) -> float:
    return 8 * len(zlib.compress(codes.tobytes(), 9)) / codes.size


def _lzma(codes: np.ndarray) -> float:
    return 8 * len(lzma.compress(codes.tobytes(), preset=6)) / codes.size
