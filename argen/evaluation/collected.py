"""What is remembered of images once their features are known.

Shapes: B batch, N images on all ranks, D feature width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from argen.evaluation.statistics import GaussianStatistics
from argen.pretrained.base import FeatureExtractor
from argen.runtime.distributed import gather


class Collected:
    """Moments always; features themselves only where a metric needs them.

    Args:
        extractor: gives the features.
        keep: names of features to keep, e.g. `pool` for KID, precision and recall.
        spatial: also take the moments of the `spatial` features, for sFID.
        max_images: how many of each to keep, an even choice that does not depend on their number or
            on ranks; None for all.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        keep: Collection[str] = (),
        spatial: bool = False,
        max_images: int | None = None,
    ) -> None:
        self.statistics = GaussianStatistics(extractor.dim)
        self.spatial: GaussianStatistics | None = None
        if spatial:
            self.spatial = GaussianStatistics(extractor.feature_dim("spatial"))
        self.kept: dict[str, list[Tensor]] = {name: [] for name in keep}
        self.index: list[Tensor] = []
        self.max_images = max_images

    def update(self, features: Mapping[str, Tensor], index_B: Tensor) -> None:
        """Add a batch; `index_B` numbers its images among all of all ranks."""
        self.statistics.update(features["pool"].cpu())
        if self.spatial is not None:
            self.spatial.update(features["spatial"].cpu())
        if self.kept:
            self.index.append(index_B.cpu())
            for name, parts in self.kept.items():
                parts.append(features[name].float().cpu())
            held = sum(map(len, self.index))
            if self.max_images is not None and held > 2 * self.max_images:
                self._thin()

    def all_reduce(self) -> None:
        """Add up the moments of all ranks."""
        self.statistics.all_reduce()
        if self.spatial is not None:
            self.spatial.all_reduce()

    def features(self, name: str, *, all_ranks: bool = True) -> Tensor:
        """Return kept features, (N, D), in order of their images: of all ranks, or this one."""
        if self.max_images is not None and self.index:
            self._thin()
        if not self.index:
            own = (torch.zeros(0, dtype=torch.long), torch.zeros(0, 0))
        else:
            own = (torch.cat(self.index), torch.cat(self.kept[name]))
        parts = [part for part in (gather([own]) if all_ranks else [own]) if len(part[0])]
        if not parts:
            return own[1]
        index, features = (torch.cat(side) for side in zip(*parts))
        order = index.argsort(stable=True)
        if self.max_images is not None:
            order = order[_even_choice(index[order], self.max_images)]
        return features[order]

    def _thin(self) -> None:
        index = torch.cat(self.index)
        chosen = _even_choice(index, self.max_images or len(index))
        self.index = [index[chosen]]
        self.kept = {name: [torch.cat(parts)[chosen]] for name, parts in self.kept.items()}


def _even_choice(index_N: Tensor, max_images: int) -> Tensor:
    """Return places of at most `max_images` images: those whose hashed number is smallest."""
    if len(index_N) <= max_images:
        return torch.arange(len(index_N))
    # A multiplication modulo a prime spreads neighbouring numbers evenly.
    spread = (index_N * 1_103_515_245 + 12_345) % 2_147_483_647
    return spread.argsort(stable=True)[:max_images].sort().values
