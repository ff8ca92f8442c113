"""The numbers of a protocol that come from features."""

from __future__ import annotations

from collections.abc import Callable

from argen.errors import UserError
from argen.evaluation.collected import Collected
from argen.evaluation.distances import (
    density_coverage,
    inception_score,
    kernel_distance,
    precision_recall,
    sorted_by_class,
)
from argen.evaluation.protocol import Protocol
from argen.evaluation.reference import Reference
from argen.evaluation.statistics import frechet_distance


def feature_metrics(
    protocol: Protocol,
    collected: Collected,
    reference: Reference,
    skipped: dict[str, str],
    notes: list[str],
) -> dict[str, float]:
    """Return the Fréchet distances, scores and coverages that a protocol asks for.

    With a running process group every rank must call it, after `Collected.all_reduce`.

    Args:
        protocol: what to measure.
        collected: features of the samples.
        reference: what they are compared with.
        skipped: gets the reason of each metric that cannot be measured.
        notes: gets what a reader of the numbers must know.
    """
    numbers: dict[str, float] = {}
    if "frechet" in protocol.metrics:
        numbers[protocol.key] = frechet_distance(collected.statistics, reference.statistics)
    if "sfid" in protocol.metrics:
        if reference.spatial is None or collected.spatial is None:
            skipped["sfid"] = f"reference {reference.name} holds no spatial statistics"
        else:
            numbers["sfid"] = frechet_distance(collected.spatial, reference.spatial)

    def pair(
        metric: str, names: tuple[str, str], measure: Callable[[], tuple[float, float]]
    ) -> None:
        try:
            numbers.update(zip(names, measure()))
        except UserError as error:
            skipped[metric] = str(error)

    if "inception_score" in protocol.metrics:
        logits, splits = collected.features("logits_unbiased"), protocol.is_splits
        shuffle = protocol.is_shuffle
        if not shuffle and sorted_by_class(logits, splits=splits):
            shuffle = True
            notes.append(
                "the images lie sorted by class, so they were shuffled for the inception score: "
                "consecutive splits would hold few classes each"
            )
        pair(
            "inception_score",
            ("inception_score", "inception_score_std"),
            lambda: inception_score(logits, splits=splits, shuffle=shuffle),
        )
    if not protocol.keeps_features:
        return numbers
    own, others = collected.features("pool"), reference.features_MD
    if not len(others):
        for metric in {"kid", "precision_recall", "density_coverage"} & set(protocol.metrics):
            skipped[metric] = f"reference {reference.name} holds no features"
        return numbers
    if "kid" in protocol.metrics:
        subsets, size = protocol.kid_subsets, protocol.kid_subset_size
        pair(
            "kid",
            ("kid", "kid_std"),
            lambda: kernel_distance(own, others, subsets=subsets, subset_size=size),
        )
    if "precision_recall" in protocol.metrics:
        pair(
            "precision_recall",
            ("precision", "recall"),
            lambda: precision_recall(own, others, neighbours=protocol.neighbours),
        )
    if "density_coverage" in protocol.metrics:
        pair(
            "density_coverage",
            ("density", "coverage"),
            lambda: density_coverage(own, others, neighbours=protocol.ball_neighbours),
        )
    return numbers
