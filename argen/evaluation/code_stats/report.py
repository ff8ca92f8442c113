"""The statistics of a code directory in one dictionary: `argen evaluate tokens=CODES`.

What is measured follows "Analyzing the language of visual tokens" (arXiv 2411.05001) and
"Elucidating the design space of language models for image generation" (arXiv 2410.16257).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from argen.data.codes import CodeDataset
from argen.errors import UserError
from argen.evaluation.code_stats.classes import class_divergence
from argen.evaluation.code_stats.compressibility import compressibility
from argen.evaluation.code_stats.dependence import neighbour_information, ngrams
from argen.evaluation.code_stats.information import counts_of, entropy_bits, miller_madow
from argen.evaluation.code_stats.words import Words, read_words
from argen.evaluation.code_stats.zipf import innovation, spaced, zipf_fit

MAX_IMAGES = 50_000


def token_statistics(
    directory: Path | str, *, max_images: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Count and measure the codes of one side of a data set.

    Args:
        directory: of code shards, or one that holds `train` (which is taken) and `val`.
        max_images: looked at, spread evenly; 50,000 when None.
        seed: of shuffles and orders.

    Returns:
        plain values, ready for JSON.

    Raises:
        UserError: no codes there, continuous ones, or too few.
    """
    if max_images is not None and max_images < 2:
        raise UserError(f"n={max_images}: token statistics need at least 2 images.")
    path = Path(directory)
    if not (path / "manifest.json").is_file() and (path / "train").is_dir():
        path = path / "train"
    dataset = CodeDataset(path)
    words = read_words(dataset, max_images=max_images or MAX_IMAGES)
    ids_NL = words.ids_NL
    return {
        "codes": str(path),
        "spec": words.spec.to_dict(),
        "described": words.spec.describe(),
        "tokenizer": dataset.tokenizer,
        "view": dataset.views[0],
        "images": len(ids_NL),
        "of_images": words.of,
        "seed": seed,
        "unigram": _unigram(words),
        "positions": _positions(words),
        "segments": _segments(words, seed),
        "parts": _parts(words),
        "zipf": _zipf(words),
        "innovation": innovation(ids_NL, seed=seed),
        "ngrams": ngrams(ids_NL, seed=seed),
        "compression_bits_per_code": compressibility(ids_NL, words.vocabulary_bits, seed=seed),
        "classes": class_divergence(ids_NL, words.labels_N, words.classes, seed=seed),
    }


def in_words(found: dict[str, Any]) -> list[str]:
    """Return the lines that a command prints about `token_statistics`."""
    unigram, zipf, packed = (found[key] for key in ("unigram", "zipf", "compression_bits_per_code"))
    usage = "" if unigram["usage"] is None else f" ({unigram['usage']:.1%})"
    lines = [
        f"{found['described']}, {found['images']} images of {found['codes']}",
        f"codes in use: {unigram['distinct']}{usage}",
        f"entropy: {unigram['entropy_bits']:.4g} bits, perplexity {unigram['perplexity']:.4g}",
    ]
    if zipf["exponent"] is not None:
        lines.append(f"Zipf exponent: {zipf['exponent']:.3g} (misfit {zipf['misfit']:.2g})")
    lines.append(f"compressed: zlib {packed['zlib']:.4g}, lzma {packed['lzma']:.4g} bits a code")
    return lines


def _unigram(words: Words) -> dict[str, Any]:
    counts = counts_of(words.ids_NL)
    bits = entropy_bits(counts)
    # An integer where a float is exact; sixty-four bits and more are given by their logarithm.
    vocabulary = words.spec.vocab_size if words.vocabulary_bits < 53 else None
    return {
        "tokens": int(words.ids_NL.size),
        "vocabulary": vocabulary,
        "vocabulary_bits": words.vocabulary_bits,
        "distinct": words.distinct,
        "usage": None if vocabulary is None else words.distinct / vocabulary,
        "entropy_bits": bits,
        "entropy_bits_corrected": bits + miller_madow(counts),
        "perplexity": 2**bits,
        "most_frequent_share": float(counts.max() / counts.sum()),
    }


def _positions(words: Words) -> dict[str, Any]:
    """Return the entropy of every position; no more than log2(N) can be seen of it."""
    plain, corrected = [], []
    for column in words.ids_NL.T:
        counts = counts_of(column)
        plain.append(entropy_bits(counts))
        corrected.append(plain[-1] + miller_madow(counts))
    return {
        "entropy_bits": plain,
        "entropy_bits_corrected": corrected,
        "mean_entropy_bits": float(np.mean(plain)),
        "most_that_can_be_seen_bits": float(np.log2(len(words.ids_NL))),
    }


def _segments(words: Words, seed: int) -> list[dict[str, Any]]:
    """Return usage, entropy and neighbours of every scale of a pyramid, or of the one grid."""
    rows = []
    for shape, ids_Nhw in words.segments():
        counts = counts_of(ids_Nhw)
        rows.append(
            {
                "shape": list(shape),
                "distinct": len(counts),
                "entropy_bits": entropy_bits(counts),
                "entropy_bits_corrected": entropy_bits(counts) + miller_madow(counts),
                "neighbours": neighbour_information(ids_Nhw, seed=seed),
            }
        )
    return rows


def _parts(words: Words) -> dict[str, Any] | None:
    """Return the entropy of every sub-token or bit, and what they share; None for plain ids.

    `shared_bits` is the sum of their entropies less that of the whole: 0 when they are independent.
    """
    if words.parts_NLG.shape[-1] == 1:
        return None
    each = [counts_of(column) for column in np.moveaxis(words.parts_NLG, -1, 0)]
    entropies = [entropy_bits(counts) for counts in each]
    return {
        "of": "bits" if words.spec.kind == "binary" else "sub-tokens",
        "distinct": [len(counts) for counts in each],
        "entropy_bits": entropies,
        "shared_bits": sum(entropies) - entropy_bits(counts_of(words.ids_NL)),
    }


def _zipf(words: Words) -> dict[str, Any]:
    ordered = np.sort(counts_of(words.ids_NL))[::-1]
    shown = spaced(len(ordered))
    return {
        **zipf_fit(ordered),
        "fitted_by": "maximum likelihood of p(rank) ~ rank^-s on the ranks that occur",
        "ranks": (shown + 1).tolist(),
        "counts": ordered[shown].tolist(),
        "cumulative_shares": (np.cumsum(ordered)[shown] / ordered.sum()).tolist(),
    }
