"""Samples in, numbers out: the one place where a protocol meets pictures.

Letters: B batch, N pictures, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from argen.data.images import ImageSource
from argen.errors import UserError
from argen.evaluation.features import FeatureExtractor, build_extractor
from argen.evaluation.metrics import nearest_centroid, nearest_rmse, picture_hashes
from argen.evaluation.pictures import to_uint8
from argen.evaluation.protocol import Protocol, evenly_spread
from argen.evaluation.reference import (
    Reference,
    dataset_batches,
    reference_from_source,
    train_name,
)
from argen.evaluation.statistics import GaussianStatistics, frechet_distance

log = logging.getLogger(__name__)


class Scorer:
    """Scores pictures as they come, in constant memory unless copies are looked for.

    Building one checks everything that can be checked before a picture exists: weights, reference,
    number of samples.

    Args:
        protocol: what to measure and how.
        source: the data; its training pictures are the reference where the protocol says `train`,
            and its classes say whether labels are spread evenly.
        samples: how many pictures will come, on all ranks together.
        extractor: a network built before, else the protocol's is built.
        reference: one made before, else the protocol's is loaded or made from `source`.
        copies_of: pictures (M, 3, H, W), or batches of them, that samples may be copies of, e.g.
            reconstructions; the training pictures when not given.
        quick: allow fewer samples than the protocol needs; the score is named accordingly.
        weights_path: the extractor's weight file, where it does not come with a package.
        device: where features are computed.
        batch_size: pictures that go through the network at once.

    Raises:
        UserError: too few samples, weights missing, no reference to be had, a reference of another
            extractor.
    """

    def __init__(
        self,
        protocol: Protocol,
        *,
        source: ImageSource | None = None,
        samples: int,
        extractor: FeatureExtractor | None = None,
        reference: Reference | None = None,
        copies_of: Tensor | Iterable[Tensor] | None = None,
        quick: bool = False,
        weights_path: Path | str | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 32,
    ) -> None:
        protocol.check_count(samples, quick=quick)
        self.protocol, self.source, self.samples = protocol, source, samples
        self.quick = quick
        self.batch_size, self.copies_of = batch_size, copies_of
        self.extractor = extractor or build_extractor(
            protocol.extractor, size=protocol.size, weights_path=weights_path, device=device
        )
        self.reference = reference or self._own_reference()
        self.foreign_reference = reference is not None and not (
            protocol.reference == "train"
            and source is not None
            and (reference.name, reference.count) == (train_name(source), len(source.train))
        )
        self.reference.check(self.extractor)
        self.statistics = GaussianStatistics(self.extractor.dim)
        self.hashes: list[str] = []
        self.labels: list[Tensor] = []
        self.pictures: list[Tensor] = []
        self.agreeing = 0

    def update(self, images_B3HW: Tensor, labels_B: Tensor | None = None) -> None:
        """Add samples.

        Args:
            images_B3HW: floats in [-1, 1], or uint8.
            labels_B: the classes asked for, if known.

        Raises:
            UserError: NaN, a size that is not the reference's, unknown labels.
        """
        self._check_batch(images_B3HW, labels_B)
        metrics = self.protocol.metrics
        for start in range(0, len(images_B3HW), self.batch_size):
            part = slice(start, start + self.batch_size)
            pixels = to_uint8(images_B3HW[part], rounding=self.protocol.rounding)  # (B, 3, H, W)
            features = self.extractor(pixels)["pool"].cpu()  # (B, D)
            self.statistics.update(features)
            if "duplicates" in metrics:
                self.hashes += picture_hashes(pixels)
            if "near_copies" in metrics:
                self.pictures.append(pixels.cpu())
            if labels_B is not None:
                own = labels_B[part].cpu().long()
                self.labels.append(own)
                if "class_agreement" in metrics and len(self.reference.classes_K):
                    reference = self.reference
                    found = nearest_centroid(features, reference.classes_K, reference.centroids_KD)
                    self.agreeing += int((found == own).sum())

    def result(self) -> dict[str, Any]:
        """Return all numbers and everything they depend on, as plain values for JSON.

        With a running process group every rank must call it; the numbers cover all ranks.
        `skipped` says why a metric of the protocol is absent, `not_comparable_because` why the
        score must not be compared with others of the protocol.
        """
        protocol, skipped = self.protocol, {}
        copies = self._near_copies() if "near_copies" in protocol.metrics else None
        labelled = sum(len(part) for part in self.labels)
        here = [self.agreeing, labelled, copies or 0]
        agreeing, labelled, copied = _sum_over_ranks(here)
        statistics = self.statistics.all_reduce()
        count = statistics.count
        protocol.check_count(count, quick=self.quick)
        quick = self.quick and count < protocol.samples
        reasons = self._differences(count, labelled)

        numbers: dict[str, float | int | str] = {}
        if "frechet" in protocol.metrics:
            numbers[protocol.key] = frechet_distance(statistics, self.reference.statistics)
        if "class_agreement" in protocol.metrics:
            if labelled == count and len(self.reference.classes_K):
                numbers["class_agreement"] = agreeing / count
            else:
                skipped["class_agreement"] = "the labels of the samples or reference are unknown"
        if "near_copies" in protocol.metrics:
            if copies is None:
                skipped["near_copies"] = "there are no training pictures to look for copies of"
            else:
                numbers["near_copies"] = copied / count
                given = self.copies_of is not None
                numbers["near_copies_of"] = "pictures given" if given else "training pictures"
        if "duplicates" in protocol.metrics:
            hashes = _gather(self.hashes)
            repeated = len(hashes) - len(set(hashes))
            numbers["duplicates"] = repeated
            if repeated:
                log.warning("%d of %d samples repeat an earlier one exactly.", repeated, count)
        return {
            **numbers,
            "score_name": protocol.score_name(count, comparable=not reasons, quick=quick),
            "samples": count,
            "quick": quick,
            "comparable": not reasons,
            "not_comparable_because": reasons,
            "skipped": skipped,
            "protocol": {"hash": protocol.hash(), **protocol.to_dict()},
            "extractor": self.extractor.protocol(),
            "reference": self.reference.describe(),
        }

    def _own_reference(self) -> Reference:
        if self.protocol.reference != "train":
            return Reference.load(self.protocol.reference)
        if self.source is None:
            raise UserError(
                f"Protocol {self.protocol.name} compares with the training pictures: say which "
                "data (data=NAME), or give stored statistics (reference=FILE.npz)."
            )
        return reference_from_source(self.source, self.extractor, batch_size=self.batch_size)

    def _check_batch(self, images: Tensor, labels: Tensor | None) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"Samples must be (B, 3, H, W), not {tuple(images.shape)}.")
        size, wanted = tuple(images.shape[2:]), tuple(self.reference.image_size)
        if wanted != (0, 0) and size != wanted:
            raise UserError(
                f"Samples are {size[0]}x{size[1]}, but reference {self.reference.name} is "
                f"{wanted[0]}x{wanted[1]}: bring both to one size first."
            )
        if labels is None:
            return
        if len(labels) != len(images):
            raise UserError(f"{len(images)} samples came with {len(labels)} labels.")
        known = set(self.reference.classes_K.tolist())
        strange = sorted(set(labels.tolist()) - known) if known else []
        if strange:
            raise UserError(
                f"Labels {strange[:5]} do not occur in reference {self.reference.name}."
            )

    def _near_copies(self) -> int | None:
        references = self.copies_of
        if references is None:
            if self.source is None:
                return None
            references = dataset_batches(self.source.train, batch_size=256)
        if not self.pictures:
            return 0
        distances = nearest_rmse(torch.cat(self.pictures), references)
        return int((distances < self.protocol.near_copy_rmse).sum())

    def _differences(self, count: int, labelled: int) -> list[str]:
        protocol, reasons = self.protocol, []
        if count != protocol.samples:
            reasons.append(f"{count} samples instead of {protocol.samples}")
        found = self.extractor.protocol()
        if found["name"] != protocol.extractor or not found["sha256"].startswith(protocol.sha256):
            reasons.append(
                f"features of {found['name']} with weights {found['sha256'][:16]} instead of "
                f"{protocol.extractor} with {protocol.sha256[:16]}"
            )
        if getattr(self.extractor, "size", protocol.size) != protocol.size:
            reasons.append(f"pictures resized to {found['resize']} instead of {protocol.size} px")
        if self.foreign_reference:
            reasons.append(f"compared with {self.reference.name} instead of {protocol.reference}")
        if protocol.labels == "even":
            labels = torch.cat([torch.zeros(0, dtype=torch.long), *self.labels])
            labels = torch.tensor(_gather(labels.tolist()), dtype=torch.long)
            classes = len(self.source.classes) if self.source else len(self.reference.classes_K)
            if labelled != count:
                reasons.append("the labels of the samples are unknown")
            elif classes and not evenly_spread(labels, classes):
                reasons.append("labels are not spread evenly over the classes")
        return reasons


def score_samples(
    images: Tensor | Iterable[Tensor],
    labels: Tensor | None,
    source: ImageSource | None,
    protocol: Protocol,
    **options: Any,
) -> dict[str, Any]:
    """Score samples in one call; see `Scorer` for the options and the errors.

    Args:
        images: (N, 3, H, W) in [-1, 1] or uint8, or batches of them in the order of `labels`.
        labels: (N,) classes asked for; None if unknown.
        source: the data that the samples imitate.
        protocol: what to measure and how.
        **options: of `Scorer`; `samples` is taken from `images` or `labels` where they tell.

    Returns:
        the numbers under their own names (`fd_lite`, `class_agreement`, ...) and all they depend
        on, ready for JSON.
    """
    if isinstance(images, Tensor):
        options["samples"] = len(images)
        images = [images]
    elif labels is not None:
        options.setdefault("samples", len(labels))
    scorer = Scorer(protocol, source=source, **{"samples": protocol.samples, **options})
    done = 0
    for batch in images:
        own = None if labels is None else labels[done : done + len(batch)]
        scorer.update(batch, own)
        done += len(batch)
    if labels is not None and done != len(labels):
        raise UserError(f"{done} samples came with {len(labels)} labels.")
    return scorer.result()


def _sum_over_ranks(values: list[int]) -> list[int]:
    if not (dist.is_available() and dist.is_initialized()):
        return values
    return [sum(column) for column in zip(*_gather([values]))]


def _gather(values: list[Any]) -> list[Any]:
    if not (dist.is_available() and dist.is_initialized()):
        return values
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]
