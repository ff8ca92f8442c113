"""What samples are compared with: feature statistics, class centroids, and where they come from.

Shapes: K classes, D feature width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from argen.errors import UserError
from argen.evaluation.collected import Collected
from argen.evaluation.sample_files import array_names
from argen.evaluation.statistics import GaussianStatistics, read_npz, write_npz
from argen.images.pixels import to_uint8
from argen.pretrained.base import FeatureExtractor
from argen.runtime.files import sha256_of


@dataclass
class Reference:
    """Statistics of the images that samples are measured against.

    Attributes:
        name: of the data, or the file's.
        statistics: of their features.
        extractor: `FeatureExtractor.protocol()` of the network that made them; empty if unknown.
        count: number of images; 0 if unknown.
        sha256: of their 8-bit pixels in order, or of the statistics file.
        image_size: (H, W); (0, 0) if unknown.
        classes_K: labels that occur.
        centroids_KD: mean feature of each.
        spatial: statistics of the `spatial` features, for sFID; None if they were not taken.
        features_MD: features of some of the images, for KID, precision and recall; maybe none.
    """

    name: str
    statistics: GaussianStatistics
    extractor: dict[str, Any]
    count: int
    sha256: str
    image_size: tuple[int, int] = (0, 0)
    classes_K: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    centroids_KD: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    spatial: GaussianStatistics | None = None
    features_MD: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

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
            "features": self.features_MD.cpu().numpy(),
            "about": np.array(json.dumps(about)),
        }
        if self.spatial is not None:
            arrays["mean_spatial"] = self.spatial.mean.cpu().numpy()
            arrays["covariance_spatial"] = self.spatial.covariance.cpu().numpy()
        write_npz(Path(path), arrays)

    @classmethod
    def load(cls, path: Path | str) -> Reference:
        """Read what `save` wrote, or a file with `mu` and `sigma` (ADM's, pytorch-fid's).

        Raises:
            UserError: missing, damaged or something else.
        """
        path = Path(path)
        arrays = read_npz(path, leave_out=("arr_0", "arr_1"))
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
                spatial=_optional(arrays, "mean_spatial", "covariance_spatial", path),
                features_MD=torch.from_numpy(arrays.get("features", np.zeros((0, 0), "f4"))),
            )
        if {"mu", "sigma"} <= set(arrays):
            return cls(
                name=path.name,
                statistics=_moments(arrays["mu"], arrays["sigma"], 0, path),
                extractor={},
                count=0,
                sha256=sha256_of(path),
                spatial=_optional(arrays, "mu_s", "sigma_s", path),
            )
        raise UserError(
            f"{path} holds {sorted(array_names(path))}, not the statistics of a reference."
        )

    def add_features(
        self, batches: Iterable[Tensor], extractor: FeatureExtractor, *, max_images: int
    ) -> None:
        """Take the features of at most `max_images` images, where a file brings images but none."""
        collected = Collected(extractor, keep=("pool",), max_images=max_images)
        done = 0
        for batch in batches:
            index = torch.arange(done, done + len(batch))
            collected.update(extractor(to_uint8(batch)), index)
            done += len(batch)
        self.features_MD = collected.features("pool", all_ranks=False)


def _optional(
    arrays: dict[str, np.ndarray], mean: str, covariance: str, path: Path
) -> GaussianStatistics | None:
    if mean not in arrays or covariance not in arrays:
        return None
    return _moments(arrays[mean], arrays[covariance], 0, path)


def _moments(
    mean: np.ndarray, covariance: np.ndarray, count: int, path: Path
) -> GaussianStatistics:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path} holds a mean {mean.shape} and covariance {covariance.shape} that do not fit."
        )
    # Files that do not say how many images they count still hold the covariance itself.
    return GaussianStatistics.from_moments(
        torch.from_numpy(mean), torch.from_numpy(covariance), count=max(2, count)
    )
