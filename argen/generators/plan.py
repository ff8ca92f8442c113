"""The plan of a generator: which codes are sampled together, and in what order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from argen.errors import UserError
from argen.spec import CodeSpec


@dataclass(frozen=True)
class Plan:
    """The factorisation p(group 1) p(group 2 | group 1) ... of an image's codes.

    Attributes:
        groups: positions (into the L codes) of each group, in the order they are sampled.
        lookahead: whether one pass can score a draft of several future groups, which is what
            speculative and Jacobi decoding need.
        any_order: whether the groups above are only a default and every sample may be sampled in
            an order of its own, which is what masked decoding needs.
        permutable: whether `start` and `score` take another order of single codes.
        trees: whether one pass can score a tree of drafts: `predict` takes the `parents` of the
            nodes and `commit` the `path` that is kept.
    """

    groups: tuple[tuple[int, ...], ...]
    lookahead: bool = False
    any_order: bool = False
    permutable: bool = False
    trees: bool = False

    def __post_init__(self) -> None:
        flat = sorted(p for group in self.groups for p in group)
        if flat != list(range(len(flat))):
            seen, missing = set(flat), sorted(set(range(max(flat, default=-1) + 1)) - set(flat))
            repeated = sorted(p for p in seen if flat.count(p) > 1)
            raise UserError(
                "A plan must cover every position exactly once; "
                f"missing {missing[:5]}, repeated {repeated[:5]}. Give each position one group."
            )

    @property
    def length(self) -> int:
        """Number of positions L."""
        return sum(len(group) for group in self.groups)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes in each group."""
        return tuple(len(group) for group in self.groups)

    def group_of(self) -> Tensor:
        """Return the number of each position's group, long (L,)."""
        number = torch.empty(self.length, dtype=torch.long)
        for g, group in enumerate(self.groups):
            number[list(group)] = g
        return number

    def check(self, spec: CodeSpec) -> None:
        """Raise unless the plan covers exactly the positions of `spec`."""
        if self.length != spec.length:
            raise UserError(
                f"The plan covers {self.length} positions, but {spec.describe()} has "
                f"{spec.length}. Make the plan from this spec."
            )

    @classmethod
    def raster(
        cls,
        spec: CodeSpec,
        *,
        lookahead: bool = True,
        permutable: bool = False,
        trees: bool = False,
    ) -> Plan:
        """One code at a time, in the order the tokenizer emits them."""
        groups = tuple((i,) for i in range(spec.length))
        return cls(groups, lookahead=lookahead, permutable=permutable, trees=trees)

    @classmethod
    def in_order(cls, order: Iterable[int], *, lookahead: bool = True, trees: bool = False) -> Plan:
        """One code at a time, in a fixed order of positions."""
        return cls(tuple((int(i),) for i in order), lookahead=lookahead, trees=trees)

    @classmethod
    def by_segment(cls, spec: CodeSpec, *, lookahead: bool = False) -> Plan:
        """One segment at a time: next-scale prediction on a pyramid."""
        groups, start = [], 0
        for segment in spec.segments:
            groups.append(tuple(range(start, start + segment.length)))
            start += segment.length
        return cls(tuple(groups), lookahead=lookahead)

    @classmethod
    def diagonals(cls, grid: tuple[int, int]) -> Plan:
        """One anti-diagonal of (h, w) at a time, each from its top right end down."""
        h, w = grid
        return cls.of_groups(
            [
                [row * w + s - row for row in range(max(0, s - w + 1), min(s, h - 1) + 1)]
                for s in range(h + w - 1)
            ]
        )

    @classmethod
    def of_groups(cls, groups: Sequence[Sequence[int]], **flags: bool) -> Plan:
        """Any explicit grouping."""
        return cls(tuple(tuple(int(p) for p in group) for group in groups), **flags)
