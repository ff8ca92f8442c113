"""Numbers on images, features and codes that need no protocol of their own.

Shapes: N M images, B batch, L positions, G sub-tokens, D feature width, P values of an image.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from argen.errors import UserError
from argen.images.pixels import to_float, to_uint8
from argen.spec import CodeSpec


def psnr_db(x_B3HW: Tensor, y_B3HW: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB: the mean of the images' own ratios.

    Args:
        x_B3HW: images in [-1, 1] (peak-to-peak 2); values outside are clipped, as in a file.
        y_B3HW: the originals, same shape.

    Raises:
        UserError: shapes differ or there is no image.
    """
    if x_B3HW.shape != y_B3HW.shape or x_B3HW.shape[0] == 0:
        raise UserError(
            f"PSNR needs pairs of images, not {tuple(x_B3HW.shape)} and {tuple(y_B3HW.shape)}."
        )
    gap = x_B3HW.float().clamp(-1, 1) - y_B3HW.float().clamp(-1, 1)
    # Equal images would be infinite; 1e-10 caps them at 106 dB.
    mse_B = gap.double().square().flatten(1).mean(1).clamp_min(1e-10)
    return float((10 * torch.log10(4 / mse_B)).mean())


def class_centroids(features_ND: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes that occur (K,) and the mean feature of each, float64 (K, D)."""
    labels = labels_N.to(features_ND.device).long()
    classes, index = labels.unique(return_inverse=True)
    sums = torch.zeros(
        len(classes), features_ND.shape[1], dtype=torch.float64, device=features_ND.device
    )
    sums.index_add_(0, index, features_ND.double())
    return classes, sums / torch.bincount(index, minlength=len(classes))[:, None]


def nearest_centroid(features_ND: Tensor, classes_K: Tensor, centroids_KD: Tensor) -> Tensor:
    """Return the class (N,) whose centroid is nearest to each feature (Euclidean)."""
    distances_NK = torch.cdist(
        features_ND.double(), centroids_KD, compute_mode="donot_use_mm_for_euclid_dist"
    )
    return classes_K[distances_NK.argmin(1)]


def class_agreement(
    features_generated: Tensor, labels: Tensor, features_train: Tensor, labels_train: Tensor
) -> float:
    """Return the share of generated images whose nearest class centroid is their own label's.

    Args:
        features_generated: (N, D).
        labels: (N,) the classes that were asked for.
        features_train: (M, D) of training images, whose class means are the centroids.
        labels_train: (M,).

    Raises:
        UserError: a label occurs that no training image has.
    """
    classes, centroids = class_centroids(features_train, labels_train)
    strange = sorted(set(labels.tolist()) - set(classes.tolist()))
    if strange:
        raise UserError(f"Classes {strange[:5]} have no training image to be compared with.")
    found = nearest_centroid(features_generated, classes, centroids)
    return float((found == labels.to(found.device)).double().mean())


def nearest_rmse(
    generated: Tensor, references: Tensor | Iterable[Tensor], *, chunk: int = 1024
) -> Tensor:
    """Return the RMSE (N,) of each image to its nearest reference, on the [0, 1] scale.

    Args:
        generated: (N, 3, H, W) in [-1, 1] or uint8.
        references: (M, 3, H, W) in [-1, 1] or uint8, or batches of them: they need not fit in
            memory at once.
        chunk: images on each side of a matrix product.

    Raises:
        UserError: images of different size, or no reference.
    """
    best = torch.full((generated.shape[0],), math.inf)
    nearest = torch.full((generated.shape[0],), math.inf)
    for batch in [references] if isinstance(references, Tensor) else references:
        if generated.shape[1:] != batch.shape[1:]:
            raise UserError(
                f"Cannot look for copies among images {tuple(batch.shape[1:])} of samples "
                f"{tuple(generated.shape[1:])}: both must have one size."
            )
        for r in batch.split(chunk):
            r_MP = _flat(r)
            half_norm_M = r_MP.square().sum(1) / 2
            for start in range(0, generated.shape[0], chunk):
                g_NP = _flat(generated[start : start + chunk])
                # |g - r|^2 / 2 without the |g|^2 that all references share.
                score_N, index_N = torch.addmm(half_norm_M, g_NP, r_MP.T, alpha=-1).min(1)
                rows = (score_N < best[start : start + chunk]).nonzero()[:, 0]
                best[start + rows] = score_N[rows]
                # The product form cancels; the winner's distance is taken again, directly.
                gap = g_NP[rows] - r_MP[index_N[rows]]
                nearest[start + rows] = gap.square().mean(1).sqrt() / 2
    if generated.shape[0] and bool(nearest.isinf().all()):
        raise UserError("There is no reference image to look for copies of.")
    return nearest


def _flat(images_B3HW: Tensor) -> Tensor:
    images = images_B3HW.cpu()
    if images.dtype == torch.uint8:
        images = to_float(images)
    return images.float().flatten(1)  # (B, P) in [-1, 1]


def near_copies(
    generated: Tensor, references: Tensor | Iterable[Tensor], threshold: float = 0.05
) -> float:
    """Return the share of images whose nearest reference is within `threshold` RMSE.

    Args:
        generated: (N, 3, H, W) in [-1, 1] or uint8.
        references: (M, 3, H, W) or batches of them, e.g. reconstructions of the training images.
        threshold: on the [0, 1] pixel scale.
    """
    if generated.shape[0] == 0:
        raise UserError("There is no generated image to compare with the references.")
    return float((nearest_rmse(generated, references) < threshold).double().mean())


def image_hashes(images_B3HW: Tensor) -> list[str]:
    """Return the sha256 of each image's 8-bit values."""
    pixels = to_uint8(images_B3HW).cpu().contiguous().numpy()
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]


def duplicates(images_B3HW: Tensor) -> int:
    """Return how many images repeat an earlier one in every 8-bit value."""
    return images_B3HW.shape[0] - len(set(image_hashes(images_B3HW)))


def code_usage(ids: Tensor, spec: CodeSpec) -> float:
    """Return the share of the vocabulary that occurs, in [0, 1].

    Args:
        ids: (B, L), (B, L, G) or bits (B, L, bits), as `spec` says.
        spec: discrete (each sub-token has its own table; the mean of their shares) or binary
            (the joint code of all bits counts).

    Raises:
        UserError: continuous codes, or more than 62 bits.
    """
    spec.check(ids)
    if spec.kind == "continuous":
        raise UserError("Continuous codes have no vocabulary to be used.")
    if spec.kind == "binary":
        bits = spec.segments[0].bits
        if bits > 62:
            raise UserError(f"Usage of {bits}-bit codes cannot be counted; 62 bits are the most.")
        powers = 2 ** torch.arange(bits, device=ids.device)
        return (ids.long() * powers).sum(-1).unique().numel() / 2**bits
    columns = ids[..., None] if ids.ndim == 2 else ids  # (B, L, G)
    tables: dict[tuple[int, int], list[Tensor]] = {}
    start = 0
    for segment in spec.segments:
        part = columns[:, start : start + segment.length]
        start += segment.length
        # Segments with equal vocabularies (the scales of a pyramid) share one codebook.
        for g, size in enumerate(segment.vocab_sizes):
            tables.setdefault((g, size), []).append(part[..., g].reshape(-1))
    shares = [torch.cat(parts).unique().numel() / size for (_, size), parts in tables.items()]
    return sum(shares) / len(shares)


def unigram_entropy_bits(ids_train: Tensor, vocab: int | Sequence[int]) -> float:
    """Return the entropy of the ids' frequencies in bits per position.

    It is what a model spends that knows how often each code occurs, but nothing of its neighbours.

    Args:
        ids_train: long, any shape for one vocabulary; (..., G) for one vocabulary a sub-token.
        vocab: the vocabulary size, or one a sub-token (their entropies add up).

    Raises:
        UserError: ids outside the vocabulary, or none at all.
    """
    sizes = [vocab] if isinstance(vocab, int) else list(vocab)
    columns = ids_train.reshape(-1, 1) if len(sizes) == 1 else ids_train.reshape(-1, len(sizes))
    if columns.shape[0] == 0:
        raise UserError("There are no codes to take the entropy of.")
    bits = 0.0
    for g, size in enumerate(sizes):
        column = columns[:, g].long()
        if int(column.min()) < 0 or int(column.max()) >= size:
            raise UserError(f"Codes reach {int(column.max())}, outside the vocabulary of {size}.")
        counts = torch.bincount(column, minlength=size).double()
        p = counts[counts > 0] / counts.sum()
        bits -= float((p * p.log2()).sum())
    return bits
