"""What samples are compared with: feature statistics, class centroids, and where they come from.

Letters: K classes, D feature width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from argen.data.images import ImageDataset, ImageSource
from argen.errors import UserError
from argen.evaluation.features import FeatureExtractor
from argen.evaluation.pictures import to_uint8
from argen.evaluation.statistics import GaussianStatistics, read_npz, write_npz


@dataclass
class Reference:
    """Statistics of the pictures that samples are measured against.

    Attributes:
        name: of the data, or the file's.
        statistics: of their features.
        extractor: `FeatureExtractor.protocol()` of the network that made them; empty if unknown.
        count: number of pictures; 0 if unknown.
        sha256: of their 8-bit pixels in order, or of the statistics file.
        image_size: (H, W); (0, 0) if unknown.
        classes_K: labels that occur.
        centroids_KD: mean feature of each.
    """

    name: str
    statistics: GaussianStatistics
    extractor: dict[str, Any]
    count: int
    sha256: str
    image_size: tuple[int, int] = (0, 0)
    classes_K: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    centroids_KD: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def describe(self) -> dict[str, Any]:
        """Return what `metrics.json` records."""
        return {
            "name": self.name,
            "count": self.count,
            "sha256": self.sha256,
            "image_size": list(self.image_size),
        }

    def check(self, extractor: FeatureExtractor) -> None:
        """Raise `UserError` when the reference was made with another extractor."""
        if extractor.dim != self.statistics.dim:
            raise UserError(
                f"Reference {self.name} holds features of width {self.statistics.dim}, but "
                f"{extractor.name} gives {extractor.dim}: make it again with this protocol."
            )
        if self.extractor and self.extractor != extractor.protocol():
            raise UserError(
                f"Reference {self.name} was made with {self.extractor}, not with "
                f"{extractor.protocol()}: make it again with this protocol."
            )

    def save(self, path: Path | str) -> None:
        """Write everything as one `.npz`."""
        about = {**self.describe(), "extractor": self.extractor}
        arrays = {
            "mean": self.statistics.mean.cpu().numpy(),
            "covariance": self.statistics.covariance.cpu().numpy(),
            "classes": self.classes_K.cpu().numpy(),
            "centroids": self.centroids_KD.cpu().numpy(),
            "about": np.array(json.dumps(about)),
        }
        write_npz(Path(path), arrays)

    @classmethod
    def load(cls, path: Path | str) -> Reference:
        """Read what `save` wrote, or a file with `mu` and `sigma` (ADM's, pytorch-fid's).

        Raises:
            UserError: missing, damaged or something else.
        """
        path = Path(path)
        arrays = read_npz(path)
        if {"mean", "covariance", "about"} <= set(arrays):
            about = json.loads(str(arrays["about"]))
            return cls(
                name=about["name"],
                statistics=_moments(arrays["mean"], arrays["covariance"], about["count"], path),
                extractor=about["extractor"],
                count=about["count"],
                sha256=about["sha256"],
                image_size=tuple(about["image_size"]),
                classes_K=torch.from_numpy(arrays["classes"]),
                centroids_KD=torch.from_numpy(arrays["centroids"]),
            )
        if {"mu", "sigma"} <= set(arrays):
            return cls(
                name=path.name,
                statistics=_moments(arrays["mu"], arrays["sigma"], 0, path),
                extractor={},
                count=0,
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            )
        raise UserError(f"{path} holds {sorted(arrays)}, not the statistics of a reference.")


def train_name(source: ImageSource) -> str:
    """Return what a reference made of a data set's training pictures is called."""
    return f"{source.name} train {source.image_size[0]}x{source.image_size[1]}"


def reference_from_source(
    source: ImageSource, extractor: FeatureExtractor, *, batch_size: int = 32
) -> Reference:
    """Return the reference of a data set's training pictures, as they are, not augmented."""
    return reference_from_batches(
        dataset_batches(source.train, batch_size=batch_size),
        extractor,
        name=train_name(source),
        labels=source.train.labels,
    )


def reference_from_batches(
    batches: Iterable[Tensor],
    extractor: FeatureExtractor,
    *,
    name: str,
    labels: Tensor | None = None,
) -> Reference:
    """Return the reference of any pictures.

    Args:
        batches: (B, 3, H, W), floats in [-1, 1] or uint8.
        extractor: the feature network.
        name: for records and messages.
        labels: (N,) of all pictures in order; without them there are no class centroids.

    Raises:
        UserError: fewer than two pictures, or as many labels as there are not pictures.
    """
    statistics = GaussianStatistics(extractor.dim)
    classes = 0 if labels is None or len(labels) == 0 else int(labels.max()) + 1
    sums_KD = torch.zeros(classes, extractor.dim, dtype=torch.float64)
    digest, size = hashlib.sha256(), (0, 0)
    for batch in batches:
        pixels = to_uint8(batch)
        if size == (0, 0):
            size = (pixels.shape[2], pixels.shape[3])
            digest.update(str(size).encode())
        digest.update(pixels.cpu().contiguous().numpy().tobytes())
        features = extractor(pixels)["pool"].cpu()
        if labels is not None:
            own = labels[statistics.count : statistics.count + len(features)].cpu().long()
            if len(own) != len(features):
                raise UserError(f"{name} has {len(labels)} labels, but more pictures.")
            sums_KD.index_add_(0, own, features.double())
        statistics.update(features)
    if statistics.count < 2:
        raise UserError(f"{name} has {statistics.count} pictures; a reference needs at least 2.")
    counts_K = torch.bincount(
        torch.zeros(0, dtype=torch.long) if labels is None else labels.cpu().long(),
        minlength=classes,
    )
    present = counts_K.nonzero()[:, 0]
    return Reference(
        name=name,
        statistics=statistics,
        extractor=extractor.protocol(),
        count=statistics.count,
        sha256=digest.hexdigest(),
        image_size=size,
        classes_K=present,
        centroids_KD=sums_KD[present] / counts_K[present, None],
    )


def dataset_batches(dataset: ImageDataset, *, batch_size: int = 32) -> Iterator[Tensor]:
    """Yield a data set's pictures in order, bare, as floats (B, 3, H, W) in [-1, 1]."""
    for start in range(0, len(dataset), batch_size):
        stop = min(start + batch_size, len(dataset))
        yield torch.stack([dataset[i]["image"] for i in range(start, stop)])


def _moments(
    mean: np.ndarray, covariance: np.ndarray, count: int, path: Path
) -> GaussianStatistics:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path} holds a mean {mean.shape} and covariance {covariance.shape} that do not fit."
        )
    # Files that do not say how many pictures they count still hold the covariance itself.
    return GaussianStatistics.from_moments(
        torch.from_numpy(mean), torch.from_numpy(covariance), count=max(2, count)
    )
