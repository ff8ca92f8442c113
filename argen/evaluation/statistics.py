"""Mean and covariance of features, gathered batch by batch, and the Fréchet distance of two.

Shapes: B batch, N images, D feature width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from argen.errors import UserError


class GaussianStatistics:
    """Count, sum and sum of outer products in float64: constant memory for any number of images.

    Args:
        dim: feature width D.
        device: where to accumulate; must support float64.
    """

    def __init__(self, dim: int, *, device: str | torch.device = "cpu") -> None:
        self.dim = dim
        self.count = 0
        # Sums are taken about the first feature seen, or they lose digits when the mean is large.
        self.origin_D = torch.zeros(dim, dtype=torch.float64, device=device)
        self.sum_D = torch.zeros(dim, dtype=torch.float64, device=device)
        self.outer_DD = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, features_ND: Tensor) -> GaussianStatistics:
        """Return the statistics of one tensor of features."""
        statistics = cls(features_ND.shape[1], device=features_ND.device)
        return statistics.update(features_ND)

    @classmethod
    def from_moments(
        cls, mean_D: Tensor, covariance_DD: Tensor, *, count: int
    ) -> GaussianStatistics:
        """Rebuild statistics from a stored mean and unbiased covariance of `count` images."""
        statistics = cls(mean_D.shape[0])
        statistics.count = count
        statistics.origin_D = mean_D.double().clone()
        statistics.outer_DD = covariance_DD.double() * (count - 1)
        return statistics

    def update(self, features_BD: Tensor) -> GaussianStatistics:
        """Add a batch of features and return self.

        Raises:
            UserError: wrong width, or values that are not finite.
        """
        if features_BD.ndim != 2 or features_BD.shape[1] != self.dim:
            raise UserError(
                f"Features of shape {tuple(features_BD.shape)} do not fit width {self.dim}."
            )
        if not bool(torch.isfinite(features_BD).all()):
            raise UserError("Features are not finite; the images hold NaN or infinity.")
        if features_BD.shape[0] == 0:
            return self
        features = features_BD.to(self.sum_D.device, torch.float64)
        if self.count == 0:
            self.origin_D = features[0].clone()
        features = features - self.origin_D
        self.count += features.shape[0]
        self.sum_D += features.sum(0)
        self.outer_DD += features.T @ features
        return self

    @property
    def mean(self) -> Tensor:
        """Mean (D,), float64."""
        self._need(1)
        return self.origin_D + self.sum_D / self.count

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (D, D), float64, as `numpy.cov` gives it."""
        self._need(2)
        shift = self.sum_D / self.count
        return (self.outer_DD - self.count * torch.outer(shift, shift)) / (self.count - 1)

    def merge(self, other: GaussianStatistics) -> GaussianStatistics:
        """Add the images counted by `other` and return self."""
        if other.dim != self.dim:
            raise UserError(f"Statistics of widths {self.dim} and {other.dim} do not merge.")
        if other.count == 0:
            return self
        if self.count == 0:
            self.origin_D = other.origin_D.to(self.sum_D.device).clone()
        moved = other._about(self.origin_D.to(other.sum_D.device))
        self.count += other.count
        self.sum_D += moved[0].to(self.sum_D.device)
        self.outer_DD += moved[1].to(self.outer_DD.device)
        return self

    def all_reduce(self) -> GaussianStatistics:
        """Sum over the ranks of a running process group (none: nothing to do); return self."""
        if not (dist.is_available() and dist.is_initialized()):
            return self
        device = self.sum_D.device
        count = torch.tensor([float(self.count)], dtype=torch.float64, device=device)
        weighted = self.origin_D * count
        dist.all_reduce(weighted)
        total = count.clone()
        dist.all_reduce(total)
        if int(total.item()) == 0:
            return self
        origin = weighted / total
        self.sum_D, self.outer_DD = self._about(origin)
        self.origin_D, self.count = origin, int(total.item())
        dist.all_reduce(self.sum_D)
        dist.all_reduce(self.outer_DD)
        return self

    def save(self, path: Path | str) -> None:
        """Write count, mean and covariance as `.npz`."""
        arrays = {
            "count": np.array(self.count),
            "mean": self.mean.cpu().numpy(),
            "covariance": self.covariance.cpu().numpy(),
        }
        write_npz(Path(path), arrays)

    @classmethod
    def load(cls, path: Path | str) -> GaussianStatistics:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing or is something else.
        """
        arrays = read_npz(Path(path))
        if not {"count", "mean", "covariance"} <= set(arrays):
            raise UserError(f"{path} holds {sorted(arrays)}, not count, mean and covariance.")
        return cls.from_moments(
            torch.from_numpy(arrays["mean"]),
            torch.from_numpy(arrays["covariance"]),
            count=int(arrays["count"]),
        )

    def _about(self, origin_D: Tensor) -> tuple[Tensor, Tensor]:
        shift = self.origin_D - origin_D
        cross = torch.outer(self.sum_D, shift)
        outer = self.outer_DD + cross + cross.T + self.count * torch.outer(shift, shift)
        return self.sum_D + self.count * shift, outer

    def _need(self, least: int) -> None:
        if self.count < least:
            raise UserError(f"Statistics need at least {least} images, not {self.count}.")


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """Return the squared Fréchet distance of two Gaussians (Dowson and Landau, 1982).

    |mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)). The last trace is the sum of the
    singular values of A^(1/2) B^(1/2), taken over the directions in which A and B vary at all:
    with fewer images than features both are rank-deficient, where a matrix square root of A B
    gains the root of the rounding error in every empty direction.

    Raises:
        UserError: different widths, or fewer than two images.
    """
    if a.dim != b.dim:
        raise UserError(
            f"Features of widths {a.dim} and {b.dim} cannot be compared: "
            "the reference was made with another extractor."
        )
    gap = a.mean.cpu() - b.mean.cpu()
    left, right = _factor(a.covariance.cpu()), _factor(b.covariance.cpu())
    overlap = torch.linalg.svdvals(left.T @ right).sum() if left.numel() and right.numel() else 0.0
    spread = left.square().sum() + right.square().sum()  # tr(A) + tr(B)
    return max(0.0, float(gap @ gap + spread - 2 * overlap))


def _factor(covariance_DD: Tensor) -> Tensor:
    # F (D, rank) with F F^T = covariance.
    values, vectors = torch.linalg.eigh((covariance_DD + covariance_DD.T) / 2)
    floor = values.abs().max() * values.shape[0] * torch.finfo(torch.float64).eps
    kept = values > floor
    return vectors[:, kept] * values[kept].sqrt()


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(temporary, path)


def read_npz(path: Path, *, leave_out: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Read the arrays of an `.npz` file.

    Args:
        path: the file.
        leave_out: names of arrays that are not read, however large.

    Raises:
        UserError: missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name not in leave_out}
    except Exception as error:
        raise UserError(f"{path} is not a readable .npz file: make or fetch it again.") from error
