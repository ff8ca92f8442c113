"""What X is in next-X prediction (xAR, arXiv 2502.20388): how codes fall into entities.

An entity is a set of codes that is sampled together. Token: one code. Cell: a square of neighbours.
Subsample: every s-th code in both directions. Scale: the image at growing resolutions. Image:
everything at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from argen.errors import UserError, suggest
from argen.generators.plan import Plan
from argen.spec import CodeSpec

KINDS = ("token", "cell", "subsample", "scale", "image")


@dataclass(frozen=True)
class Entities:
    """The internal sequence of a next-X model: coarse maps, if any, then the codes, group by group.

    Attributes:
        groups: positions of the codes of each entity, in the order they are sampled.
        coarse: grids of smaller maps that stand before the codes as context. They are averages
            of the codes, so they are sampled too but are no codes themselves.
        grid: (h, w) that coarse maps are averaged from; unused without them.
        places: row and column of each of the S places of the sequence on the finest grid.
    """

    groups: tuple[tuple[int, ...], ...]
    coarse: tuple[tuple[int, int], ...]
    grid: tuple[int, int]
    places: tuple[tuple[float, float], ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of places of each entity, coarse maps included."""
        return (*(h * w for h, w in self.coarse), *(len(group) for group in self.groups))

    @property
    def plan(self) -> Plan:
        """The groups; the coarse maps are sampled with the first of them."""
        return Plan.of_groups(self.groups)

    def numbers(self) -> Tensor:
        """Return the number of each place's entity, long (S,)."""
        return torch.tensor([e for e, n in enumerate(self.lengths) for _ in range(n)])

    def order(self) -> Tensor:
        """Return the position of each code of the sequence, long (L,)."""
        return torch.tensor([p for group in self.groups for p in group])

    def sequence(self, codes_BLC: Tensor) -> Tensor:
        """Return coarse maps and codes (B, S, C) in the order of the sequence."""
        parts = []
        if self.coarse:
            grid = codes_BLC.transpose(1, 2).unflatten(2, self.grid)  # B C h w
            for shape in self.coarse:
                parts.append(F.adaptive_avg_pool2d(grid, shape).flatten(2).transpose(1, 2))
        parts.append(codes_BLC[:, self.order().to(codes_BLC.device)])
        return torch.cat(parts, dim=1)


def entities(spec: CodeSpec, kind: str = "cell", size: int | None = None) -> Entities:
    """Return the entities of a code.

    Args:
        spec: the code; every segment is split on its own, one after another.
        kind: `token`, `cell`, `subsample`, `scale` or `image`.
        size: side of a cell (default: half the grid, which gives 2 x 2 cells; cells at the far
            edges may be smaller); stride of a subsample (default 2); number of scales (default 3,
            each half as large as the next). Codes that are a pyramid already have their own scales.

    Raises:
        UserError: for an unknown kind, or a size that does not fit it.
    """
    if kind not in KINDS:
        raise UserError(
            f"Unknown entity {kind!r}; use one of {', '.join(KINDS)}.{suggest(kind, KINDS)}"
        )
    if size is not None and kind in ("token", "image"):
        raise UserError(f"entity={kind} has no size; leave entity_size={size} out.")
    if size is not None and size < 1:
        raise UserError(f"entity_size={size} must be at least 1.")
    groups: list[list[int]] = []
    places: list[tuple[float, float]] = []
    start, finest = 0, spec.grid
    for segment in spec.segments:
        for group in _split(segment.shape, kind, size):
            groups.append([start + p for p in group])
            places += _places(segment.shape, finest, group)
        start += segment.length
    if kind == "image":
        groups = [[p for group in groups for p in group]]
    coarse: list[tuple[int, int]] = []
    if kind == "scale":
        if len(spec.segments) == 1:
            coarse = _pyramid(finest, 3 if size is None else size)
        elif size not in (None, len(spec.segments)):
            raise UserError(
                f"entity_size={size}, but {spec.describe()} already has {len(spec.segments)} "
                "scales; leave it out."
            )
    before = [place for shape in coarse for place in _places(shape, finest)]
    return Entities(
        groups=tuple(tuple(group) for group in groups),
        coarse=tuple(coarse),
        grid=finest,
        places=tuple(before + places),
    )


def _split(shape: tuple[int, int], kind: str, size: int | None) -> list[list[int]]:
    """Split the positions of one grid."""
    h, w = shape
    if kind == "token":
        return [[p] for p in range(h * w)]
    if kind == "cell":
        side = -(-max(h, w) // 2) if size is None else size
        return [
            [r * w + c for r in range(r0, min(r0 + side, h)) for c in range(c0, min(c0 + side, w))]
            for r0 in range(0, h, side)
            for c0 in range(0, w, side)
        ]
    if kind == "subsample":
        stride = 2 if size is None else size
        return [
            [r * w + c for r in range(r0, h, stride) for c in range(c0, w, stride)]
            for r0 in range(min(stride, h))
            for c0 in range(min(stride, w))
        ]
    return [list(range(h * w))]


def _places(
    shape: tuple[int, int], finest: tuple[int, int], positions: Sequence[int] | None = None
) -> list[tuple[float, float]]:
    """Return the centres of positions of a grid in the rows and columns of the finest grid."""
    h, w = shape
    tall, wide = finest[0] / h, finest[1] / w
    chosen = range(h * w) if positions is None else positions
    return [((p // w + 0.5) * tall - 0.5, (p % w + 0.5) * wide - 0.5) for p in chosen]


def _pyramid(grid: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """Return the grids below `grid`, coarse to fine, each half of the next."""
    found: list[tuple[int, int]] = []
    h, w = grid
    while len(found) < count - 1 and max(h, w) > 1:
        h, w = -(-h // 2), -(-w // 2)
        found.insert(0, (h, w))
    return found
