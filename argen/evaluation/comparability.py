"""Why a score must not be compared with others of its protocol."""

from __future__ import annotations

from torch import Tensor

from argen.evaluation.protocol import Protocol, evenly_spread
from argen.pretrained.base import FeatureExtractor


def departures(
    protocol: Protocol,
    *,
    count: int,
    labels: Tensor | None,
    classes: int,
    extractor: FeatureExtractor,
    other_reference: str | None,
) -> list[str]:
    """Return every way in which a run differed from its protocol, in words; empty if in none.

    Args:
        protocol: what was promised.
        count: images scored, on all ranks.
        labels: (N,) classes asked for of all ranks; None if unknown.
        classes: how many classes there are; 0 if unknown.
        extractor: the network used.
        other_reference: name of a reference that is not the protocol's; None if it is.
    """
    reasons = []
    if count != protocol.samples:
        reasons.append(f"{count} samples instead of {protocol.samples}")
    found = extractor.protocol()
    if found["name"] != protocol.extractor or not found["sha256"].startswith(protocol.sha256):
        reasons.append(
            f"features of {found['name']} with weights {found['sha256'][:16]} instead of "
            f"{protocol.extractor} with {protocol.sha256[:16]}"
        )
    if getattr(extractor, "size", protocol.size) != protocol.size:
        reasons.append(f"images resized to {found['resize']} instead of {protocol.size} px")
    if other_reference is not None:
        reasons.append(f"compared with {other_reference} instead of {protocol.reference}")
    if protocol.labels == "even":
        if labels is None or len(labels) != count:
            reasons.append("the labels of the samples are unknown")
        elif classes and not evenly_spread(labels, classes):
            reasons.append("labels are not spread evenly over the classes")
    return reasons
