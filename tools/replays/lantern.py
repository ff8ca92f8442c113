"""Replays LANTERN: tree verification with dynamic and static trees, and the drafter network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from argen.decoding.filters import Filters
from argen.decoding.speculative.decisions import Draws
from argen.decoding.speculative.neighbours import NeighbourRejection, nearest_codes
from argen.decoding.speculative.trees import Tree, Walk, walk
from replays.fixture import Fixture

SYSTEMS = (
    "lantern-accept",
    "lantern-accept-static",
)


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a `lantern-accept` or `lantern-accept-static` fixture."""
    nearest = nearest_codes(fixture["codes"], len(fixture["codes"]) - 1)
    found: dict[str, list[Any]] = {
        name: [] for name in ("best_candidate", "accept_length", "sample_p", "tests")
    }
    for case in range(len(fixture["candidates"])):
        kept, path = _verify(fixture, case, nearest)
        found["best_candidate"].append(torch.tensor(path))
        found["accept_length"].append(kept.count_B[0])
        found["sample_p"].append(kept.law[0])
        found["tests"].append(kept.tests_B[0])
    return {name: torch.stack(values) for name, values in found.items()} | {"nearest": nearest}


class Recorded(Draws):
    """Recorded uniforms, consumed one a test."""

    def __init__(self, uniforms: Tensor) -> None:
        self.uniforms, self.used = uniforms, 0

    def keep(self, chance: Tensor, positions: Tensor, *, matters: Tensor, **_: Any) -> Tensor:
        """Compare the next uniform, if there is a draft to test; equality keeps."""
        uniform = self.uniforms[self.used]
        self.used += int(matters[0, 0])
        return (uniform <= chance) & matters[..., None]


def _verify(fixture: Fixture, case: int, nearest: Tensor) -> tuple[Walk, int]:
    """Return the walk of one case and the first path that holds what was kept."""
    paths = fixture["candidates"][case].tolist()
    tree, cells = _tree(fixture, case, paths)
    config = fixture.config
    filters = Filters(
        temperature=config.get("temperature", 1.0),
        top_k=int(fixture["top_k"][case]),
        top_p=config.get("top_p", 1.0),
    )
    logits = torch.stack([fixture["logits"][case, p, i] for p, i in cells])[None]
    relaxed = bool(fixture["lantern"][case])
    acceptance = NeighbourRejection(
        k=int(fixture["lantern_k"][case]) if relaxed else 0,
        delta=round(float(fixture["lantern_delta"][case]), 6),
        certain=tree.laws is None,
        nearest=nearest,
    )
    found = walk(
        tree,
        torch.softmax(filters(logits), dim=-1).double(),
        torch.arange(tree.depth + 1)[None],
        Recorded(fixture["uniforms"][case]),
        0,
        acceptance=acceptance,
        limit_B=torch.tensor([tree.depth]),
    )
    last = int(found.path[0, found.count_B[0] - 1]) if found.count_B[0] else 0
    return found, cells[last][0]


def _tree(fixture: Fixture, case: int, paths: list[list[int]]) -> tuple[Tree, list[Any]]:
    """Merge equal prefixes; also returns the (path, place) where each number first stands."""
    numbers: dict[tuple[int, ...], int] = {tuple(paths[0][:1]): 0}
    cells, codes, parents = [(0, 0)], [], []
    for p, path in enumerate(paths):
        for i in range(1, len(path)):
            prefix = tuple(path[: i + 1])
            if -1 in prefix or prefix in numbers:
                continue
            numbers[prefix] = len(numbers)
            parents.append(numbers[prefix[:-1]])
            codes.append(path[i])
            cells.append((p, i))
    laws = None
    if "draft_dist" in fixture.io:
        vocab = fixture["draft_dist"].shape[-1]
        laws = torch.zeros(1, len(numbers), vocab, dtype=torch.float64)
        for parent, (p, i) in zip(parents, cells[1:]):
            laws[0, parent] = fixture["draft_dist"][case, p, i]
    width = max(parents.count(parent) for parent in parents) if parents else 1
    depth = len(paths[0]) - 1
    return Tree(torch.tensor([codes]), torch.tensor([parents]), laws, width, depth), cells
