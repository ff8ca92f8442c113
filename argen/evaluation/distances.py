"""Metrics that need the features themselves, not only their moments.

Shapes: N samples, M reference images, D feature width, K classes of the network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from argen.errors import UserError


def inception_score(
    logits_NK: Tensor, *, splits: int = 10, shuffle: bool = False
) -> tuple[float, float]:
    """Return mean and spread of the inception score (arXiv 1606.03498) over equal splits.

    Args:
        logits_NK: `logits_unbiased` in the order of the samples.
        splits: of consecutive samples; 10 of 5,000 in ADM's evaluation.
        shuffle: in torch-fidelity's fixed order first, as its command does; ADM does not.

    Raises:
        UserError: fewer samples than splits.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    if len(logits_NK) < splits:
        raise UserError(f"{splits} splits need as many samples, not {len(logits_NK)}.")
    found = isc_features_to_metric(logits_NK, splits=splits, shuffle=shuffle)
    return found["inception_score_mean"], found["inception_score_std"]


def sorted_by_class(logits_NK: Tensor, *, splits: int = 10) -> bool:
    """Return whether consecutive splits hold other classes than chance would give them.

    Images that lie sorted by class make the inception score of consecutive splits far too small.
    The classes that the network sees in each split are compared by Pearson's chi-square with
    those of a random order, whose mean is exact for the counts at hand.

    Args:
        logits_NK: in the order of the samples.
        splits: of consecutive samples, as in `inception_score`.
    """
    N = len(logits_NK)
    if 2 * splits > N or splits < 2:
        return False
    _, seen_N = logits_NK.argmax(1).unique(return_inverse=True)
    split_N = torch.arange(N) * splits // N
    classes = int(seen_N.max()) + 1
    if classes < 2:
        return False
    counts_SK = torch.bincount(split_N * classes + seen_N.cpu(), minlength=splits * classes)
    counts_SK = counts_SK.view(splits, classes).double()
    expected_SK = counts_SK.sum(1, keepdim=True) * counts_SK.sum(0) / N
    found = float(((counts_SK - expected_SK).square() / expected_SK).sum())
    freedom = (splits - 1) * (classes - 1)
    return found > N / (N - 1) * freedom + 8 * (2 * freedom) ** 0.5


def kernel_distance(
    samples_ND: Tensor, reference_MD: Tensor, *, subsets: int = 100, subset_size: int = 1000
) -> tuple[float, float]:
    """Return mean and spread of KID (arXiv 1801.01401): squared MMD, cubic kernel, over subsets.

    Raises:
        UserError: fewer images on a side than a subset holds.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    fewest = min(len(samples_ND), len(reference_MD))
    if fewest < subset_size:
        raise UserError(f"a subset holds {subset_size} images, but one side has {fewest}")
    found = kid_features_to_metric(
        samples_ND,
        reference_MD,
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        rng_seed=2020,
        verbose=False,
    )
    return found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]


def precision_recall(
    samples_ND: Tensor, reference_MD: Tensor, *, neighbours: int = 3
) -> tuple[float, float]:
    """Return precision and recall (arXiv 1904.06991).

    A sample is precise if it lies within the distance to the k-th neighbour of some reference
    image; recall is the same with the sides exchanged.

    Raises:
        UserError: no more images on a side than neighbours.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    _need_neighbours(samples_ND, reference_MD, neighbours)
    found = prc_features_to_metric(
        samples_ND,
        reference_MD,
        prc_neighborhood=neighbours,
        prc_batch_size=2048,
        save_cpu_ram=True,
        verbose=False,
    )
    return found["precision"], found["recall"]


def density_coverage(
    samples_ND: Tensor, reference_MD: Tensor, *, neighbours: int = 5, chunk: int = 2048
) -> tuple[float, float]:
    """Return density and coverage (arXiv 2002.09797).

    Density: in how many reference balls a sample lies on average, over k. Coverage: the share of
    reference balls that hold a sample. A ball reaches to the k-th neighbour among the reference.

    Raises:
        UserError: no more images on a side than neighbours.
    """
    _need_neighbours(samples_ND, reference_MD, neighbours)
    inside, covered = 0, 0
    for part_mD in reference_MD.split(chunk):
        # The nearest reference image is the ball's own centre.
        radius_m = torch.cdist(part_mD, reference_MD).kthvalue(neighbours + 1).values
        held_m = torch.zeros(len(part_mD), dtype=torch.long)
        for some_nD in samples_ND.split(chunk):
            held_m += (torch.cdist(part_mD, some_nD) < radius_m[:, None]).sum(1)
        inside += int(held_m.sum())
        covered += int((held_m > 0).sum())
    return inside / (neighbours * len(samples_ND)), covered / len(reference_MD)


def _need_neighbours(samples_ND: Tensor, reference_MD: Tensor, neighbours: int) -> None:
    fewest = min(len(samples_ND), len(reference_MD))
    if fewest <= neighbours:
        raise UserError(f"{neighbours} neighbours need more images than one side's {fewest}")
