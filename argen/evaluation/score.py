"""Samples in, numbers out: the one place where a protocol meets images.

Shapes: B batch, N images, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from argen.data.images import ImageSource
from argen.errors import UserError
from argen.evaluation.ahead import ahead
from argen.evaluation.collected import Collected
from argen.evaluation.comparability import departures
from argen.evaluation.feature_metrics import feature_metrics
from argen.evaluation.metrics import image_hashes, nearest_centroid, nearest_rmse
from argen.evaluation.paired import Paired
from argen.evaluation.protocol import Protocol
from argen.evaluation.reconstructed import Images
from argen.evaluation.reference import Reference
from argen.evaluation.reference_making import (
    dataset_batches,
    open_reference,
    protocol_reference,
    require_reference,
    train_name,
)
from argen.images.pixels import to_uint8
from argen.pretrained.base import FeatureExtractor
from argen.pretrained.features import build_extractor
from argen.runtime.distributed import all_sum_ints, gather

log = logging.getLogger(__name__)


class Scorer:
    """Scores images as they come.

    Memory is constant in their number, but for an image's hash, for the features themselves where
    a metric needs them (KID, precision and recall), and for pixels where copies are looked for.
    Building one checks everything that can be checked before an image exists: weights, reference,
    number of samples.

    Args:
        protocol: what to measure and how.
        source: the data; its training images are the reference where the protocol says `train`,
            its held-out ones where it says `originals`, and its classes say whether labels are
            spread evenly.
        samples: how many images will come, on all ranks together.
        extractor: a network built before, else the protocol's is built.
        reference: one made before, or images or a file of statistics by path; else the
            protocol's is loaded or made from `source`.
        originals: the images that were reconstructed; `source.val` when not given.
        paired: what compares reconstructions with their originals, where the protocol does.
        copies_of: images (M, 3, H, W), or batches of them, that samples may be copies of, e.g.
            reconstructions; the training images when not given.
        quick: allow fewer samples than the protocol needs; the score is named accordingly.
        weights_path: the extractor's weights, where they do not come with a package.
        device: where features are computed.
        batch_size: images that go through the network at once.

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
        reference: Reference | Path | str | None = None,
        originals: Images | None = None,
        paired: Paired | None = None,
        copies_of: Tensor | Iterable[Tensor] | None = None,
        quick: bool = False,
        weights_path: Path | str | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 32,
    ) -> None:
        protocol.check_count(samples, quick=quick)
        self.protocol, self.source, self.samples = protocol, source, samples
        self.quick, self.paired = quick, paired
        self.batch_size, self.copies_of = batch_size, copies_of
        if reference is None:
            require_reference(protocol, source)  # said before a network is built
        self.extractor = extractor or build_extractor(
            protocol.extractor, size=protocol.size, weights_path=weights_path, device=device
        )
        wants = set(protocol.metrics)
        if "inception_score" in wants:
            self.extractor.feature_dim("logits_unbiased")
        if isinstance(reference, (str, Path)):
            reference = open_reference(
                reference, protocol, extractor=self.extractor, batch_size=batch_size
            )
        self.reference = reference or protocol_reference(
            protocol, self.extractor, source=source, images=originals, batch_size=batch_size
        )
        self.foreign_reference = reference is not None and not (
            protocol.reference == "given"
            or (
                protocol.reference == "train"
                and source is not None
                and (reference.name, reference.count) == (train_name(source), len(source.train))
            )
        )
        self.reference.check(self.extractor)
        keep = {"pool"} if protocol.keeps_features else set()
        keep |= {"logits_unbiased"} if "inception_score" in wants else set()
        self.collected = Collected(self.extractor, keep=keep, spatial="sfid" in wants)
        self.seen = 0
        self.hashes: list[str] = []
        self.labels: list[Tensor] = []
        self.images: list[Tensor] = []
        self.agreeing = 0

    def update(
        self,
        images_B3HW: Tensor,
        labels_B: Tensor | None = None,
        index_B: Tensor | None = None,
    ) -> None:
        """Add samples.

        Args:
            images_B3HW: floats in [-1, 1], or uint8.
            labels_B: the classes asked for, if known.
            index_B: their numbers among the samples of all ranks; counted on when not given.

        Raises:
            UserError: NaN, a size that is not the reference's, unknown labels.
        """
        self._check_batch(images_B3HW, labels_B)
        metrics = self.protocol.metrics
        if index_B is None:
            index_B = torch.arange(self.seen, self.seen + len(images_B3HW))
        for start in range(0, len(images_B3HW), self.batch_size):
            part = slice(start, start + self.batch_size)
            pixels = to_uint8(images_B3HW[part], rounding=self.protocol.rounding)  # (B, 3, H, W)
            features = self.extractor(pixels)
            self.collected.update(features, index_B[part])
            self.seen += len(pixels)
            if "duplicates" in metrics:
                self.hashes += image_hashes(pixels)
            if "near_copies" in metrics:
                self.images.append(pixels.cpu())
            if labels_B is not None:
                own = labels_B[part].cpu().long()
                self.labels.append(own)
                if "class_agreement" in metrics and len(self.reference.classes_K):
                    reference, pool = self.reference, features["pool"].cpu()
                    found = nearest_centroid(pool, reference.classes_K, reference.centroids_KD)
                    self.agreeing += int((found == own).sum())

    def result(self) -> dict[str, Any]:
        """Return all numbers and everything they depend on, as plain values for JSON.

        With a running process group every rank must call it; the numbers cover all ranks.
        `skipped` says why a metric of the protocol is absent, `notes` what was done to the images
        as they lay, `not_comparable_because` why the score must not be compared with others of the
        protocol.
        """
        protocol = self.protocol
        skipped: dict[str, str] = {}
        copies = self._near_copies() if "near_copies" in protocol.metrics else None
        agreeing, labelled, copied = all_sum_ints(
            [self.agreeing, sum(map(len, self.labels)), copies or 0]
        )
        if "duplicates" in protocol.metrics:
            hashes = gather(self.hashes)
            if repeated := len(hashes) - len(set(hashes)):
                log.warning("%d of %d samples repeat another exactly.", repeated, len(hashes))
        self.collected.all_reduce()
        count = self.collected.statistics.count
        protocol.check_count(count, quick=self.quick)
        quick = self.quick and count < protocol.samples
        labels = torch.tensor(gather([i for part in self.labels for i in part.tolist()]))
        reasons = departures(
            protocol,
            count=count,
            labels=labels.long() if labelled else None,
            classes=len(self.source.classes) if self.source else len(self.reference.classes_K),
            extractor=self.extractor,
            other_reference=self.reference.name if self.foreign_reference else None,
        )

        notes: list[str] = []
        numbers: dict[str, Any] = feature_metrics(
            protocol, self.collected, self.reference, skipped, notes
        )
        if self.paired is not None:
            numbers |= self.paired.numbers(protocol.metrics, skipped)
        if "class_agreement" in protocol.metrics:
            if labelled == count and len(self.reference.classes_K):
                numbers["class_agreement"] = agreeing / count
            else:
                skipped["class_agreement"] = "the labels of the samples or reference are unknown"
        if "near_copies" in protocol.metrics:
            if copies is None:
                skipped["near_copies"] = "there are no training images to look for copies of"
            else:
                numbers["near_copies"] = copied / count
                given = self.copies_of is not None
                numbers["near_copies_of"] = "images given" if given else "training images"
        if "duplicates" in protocol.metrics:
            numbers["duplicates"] = repeated
        return {
            **numbers,
            "score_name": protocol.score_name(count, comparable=not reasons, quick=quick),
            "samples": count,
            "quick": quick,
            "comparable": not reasons,
            "not_comparable_because": reasons,
            "skipped": skipped,
            "notes": notes,
            "protocol": {"hash": protocol.hash(), **protocol.to_dict()},
            "extractor": self.extractor.protocol(),
            "reference": self.reference.describe(),
        }

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
        if not self.images:
            return 0
        distances = nearest_rmse(torch.cat(self.images), references)
        return int((distances < self.protocol.near_copy_rmse).sum())


def score_samples(
    images: Tensor | Iterable[Tensor] | Iterable[tuple[Tensor, Tensor]],
    labels: Tensor | None,
    source: ImageSource | None,
    protocol: Protocol,
    **options: Any,
) -> dict[str, Any]:
    """Score samples in one call; see `Scorer` for the options and the errors.

    Args:
        images: (N, 3, H, W) in [-1, 1] or uint8, or batches of them in order, or batches each with
            the numbers (B,) of its images, where ranks share the work.
        labels: (N,) classes asked for, of all ranks' images; None if unknown.
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
    for batch in ahead(images):
        pixels, index = batch if isinstance(batch, tuple) else (batch, None)
        if index is None:
            index = torch.arange(scorer.seen, scorer.seen + len(pixels))
        if labels is not None and len(index) and int(index.max()) >= len(labels):
            raise UserError(f"{int(index.max()) + 1} samples came with {len(labels)} labels.")
        scorer.update(pixels, None if labels is None else labels[index], index)
    (done,) = all_sum_ints([scorer.seen])
    if labels is not None and done != len(labels):
        raise UserError(f"{done} samples came with {len(labels)} labels.")
    return scorer.result()
