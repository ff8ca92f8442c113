"""Trees of drafts grown by a network that reads the target's hidden vectors.

Dynamic trees keep the likeliest paths (EAGLE-2 and LANTERN, arXiv 2406.16858, 2410.03355); their
drafts are one-hot. Static trees have a fixed shape and drafts sampled without replacement
(LANTERN++, arXiv 2502.06352).

Shapes: R rows (samples, doubled under guidance), B samples, N nodes, W width, D model width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from argen.decoding.filters import Filters
from argen.decoding.guidance import repeat_for_cfg
from argen.decoding.speculative.decisions import DRAFT, Decisions, use_of
from argen.decoding.speculative.distributions import Distributions, GuidanceTable
from argen.decoding.speculative.trees import Tree
from argen.errors import UserError
from argen.generators.drafter.feature_drafter import FeatureDrafter
from argen.generators.heads.base import Head
from argen.layers.cache import KVCache, Window
from argen.layers.masks import causal, dense_mask


@dataclass
class FeatureDrafterState:
    """The drafter network at work.

    Attributes:
        network: the drafter.
        head: the target's head.
        guidance: of each step, or None.
        filters: logit filters.
        cache: keys and values of the rows of final codes.
        last: predicted hidden vector of the next code (R, 1, D).
        length_B: final codes; each has a row in the cache.
        longest: the largest of them, on the host.
    """

    network: FeatureDrafter
    head: Head
    guidance: GuidanceTable | None
    filters: Filters
    cache: KVCache
    last: Tensor
    length_B: Tensor
    longest: int

    def read(
        self, codes: Tensor, hidden: Tensor, counts_B: Tensor, longest: int
    ) -> FeatureDrafterState:
        """Take in final codes and the target's hidden vectors that predicted them.

        Args:
            codes: (B, n); before the first code also one 0 for each row of the prefix.
            hidden: (R, n, D).
            counts_B: how many of the codes are final in each row, prefix rows not counted.
            longest: the largest number of final codes afterwards.
        """
        guided, n, device = self.guidance is not None, codes.shape[1], codes.device
        prefix = self.network.prefix_rows if self.longest == 0 else 0
        first_B = self.network.prefix_rows - prefix + self.length_B
        start = repeat_for_cfg(first_B, guided)
        reach = self.network.prefix_rows + self.longest + n - prefix
        window = Window(start=start, n=n, reach=reach)
        places = window.slots(device)
        mask = dense_mask(causal, places, torch.arange(window.reach, device=device))
        found = self.network.next_hidden(
            repeat_for_cfg(codes, guided),
            hidden,
            places,
            mask=mask,
            cache=self.cache,
            window=window,
        )
        at = repeat_for_cfg((prefix + counts_B - 1).clamp(min=0), guided)
        last = found[torch.arange(len(found), device=device), at][:, None]
        return replace(self, last=last, length_B=self.length_B + counts_B, longest=longest)

    def distributions(self, hidden: Tensor, level: int) -> Distributions:
        """Return the distributions behind predicted hidden vectors (R, n, D) of a level."""
        steps = (self.length_B + level)[:, None].expand(-1, hidden.shape[1])
        return Distributions(self.head, self.head(hidden), steps, self.guidance, self.filters)

    def feed(self, codes: Tensor, hidden: Tensor, above: Tensor, level: int) -> Tensor:
        """Run nodes of one level; returns their predicted hidden vectors (R, n, D).

        Args:
            codes: (B, n).
            hidden: predicted hidden vectors (R, n, D) of their parents.
            above: which of the nodes fed so far each may look at, its own last, (B or 1, n, fed).
            level: 0 for the children of the root.
        """
        guided, n, device = self.guidance is not None, codes.shape[1], codes.device
        base_R1 = repeat_for_cfg(self.network.prefix_rows + self.length_B, guided)[:, None]
        fed = above.shape[-1]
        window = Window(
            start=base_R1[:, 0] + fed - n,
            n=n,
            reach=self.network.prefix_rows + self.longest + fed,
        )
        node = torch.arange(window.reach, device=device) - base_R1  # R reach
        above = repeat_for_cfg(above.expand(len(codes), -1, -1), guided)  # R n fed
        index = node.clamp(0, fed - 1)[:, None].expand(-1, n, -1)
        mask = (node < 0)[:, None] | (above.gather(-1, index) & (node < fed)[:, None])
        places = (base_R1 + level).expand(-1, n)
        return self.network.next_hidden(
            repeat_for_cfg(codes, guided),
            hidden,
            places,
            mask=mask[:, None],
            cache=self.cache,
            window=window,
        )


def grow_likeliest(state: FeatureDrafterState, *, width: int, steps: int, nodes: int) -> Tree:
    """Grow a dynamic tree: the `nodes` likeliest of all codes met in a beam search.

    Args:
        state: the drafter after the last final code.
        width: size W of the beam, and children tried of each node in it.
        steps: times the beam is fed to the drafter; the tree has up to steps + 1 levels.
        nodes: nodes kept.
    """
    guided, B, device = state.guidance is not None, len(state.length_B), state.last.device
    row = torch.arange(B, device=device)[:, None]
    score, beam = _best(_log_probs(state, state.last, 0)[:, 0], width)  # B W, B W
    codes, scores, parents = [beam], [score], [torch.zeros_like(beam)]
    numbers = torch.arange(1, width + 1, device=device).expand(B, width)  # of the beam's nodes
    hidden = state.last.expand(-1, width, -1)
    above, met = torch.eye(width, dtype=torch.bool, device=device).expand(B, -1, -1), width
    for level in range(steps):
        predicted = state.feed(beam, hidden, above, level)  # R W D
        gain, tried = _best(_log_probs(state, predicted, level + 1), width)  # B W W
        total = (score[..., None] + gain).flatten(1)  # B W*W
        codes.append(tried.flatten(1))
        scores.append(total)
        parents.append(numbers.repeat_interleave(width, dim=1))
        score, kept = total.topk(width, dim=-1)  # B W
        numbers, met = met + 1 + kept, met + width * width
        beam, parent = tried.flatten(1).gather(1, kept), kept // width
        rows = torch.arange(len(predicted), device=device)[:, None]
        hidden = predicted[rows, repeat_for_cfg(parent, guided)]
        own = torch.eye(width, dtype=torch.bool, device=device).expand(B, -1, -1)
        above = torch.cat((above[row, parent], own), dim=-1)
    every = torch.cat(scores, dim=1)  # B met
    # Stable, so that of equal scores a node comes before those below it.
    best = every.sort(dim=-1, descending=True, stable=True).indices
    chosen = best[:, :nodes].sort(-1).values  # B N
    old = torch.cat(parents, dim=1).gather(1, chosen)  # parents, numbered among all met
    new = torch.searchsorted(chosen, (old - 1).clamp(min=0)) + 1
    return Tree(
        codes=torch.cat(codes, dim=1).gather(1, chosen),
        parents=torch.where(old > 0, new, 0),
        probs=None,
        width=width,
        depth=steps + 1,
    )


def grow_sampled(
    state: FeatureDrafterState,
    shape: TreeShape,
    positions: Tensor,
    decisions: Decisions,
    number: int,
) -> Tree:
    """Grow a static tree: children are sampled one after another without replacement.

    Args:
        state: the drafter after the last final code.
        shape: which nodes there are.
        positions: positions (B, levels) of the levels.
        decisions: random decisions.
        number: number of the pass.
    """
    B, device = len(state.length_B), state.last.device
    parents = torch.tensor(shape.parents, device=device)
    codes = torch.zeros(B, len(shape.parents), dtype=torch.long, device=device)
    predicted = state.last  # of the inner nodes of the level above
    inner = [0]
    tree_probs: Tensor | None = None
    fed: list[int] = []
    for level in range(shape.depth):
        probs = state.distributions(predicted, level).probs(codes[:, : len(inner), None])
        probs = probs[:, :, 0]  # B n V
        if tree_probs is None:
            tree_probs = probs.new_zeros(B, len(shape.parents) + 1, probs.shape[-1])
        tree_probs[:, inner] = probs
        left = probs
        for rank in range(max(len(shape.children[i]) for i in inner)):
            some = [(at, i) for at, i in enumerate(inner) if len(shape.children[i]) > rank]
            at = [a for a, _ in some]
            nodes = torch.tensor([shape.children[i][rank] for _, i in some], device=device)
            # Every node has noise of its own.
            places = positions[:, level : level + 1] + len(state.network.rope_table) * nodes
            new = decisions.choose(
                left[:, at],
                places,
                use=use_of(DRAFT, number),
                where=torch.ones_like(places, dtype=torch.bool),
            )
            codes[:, nodes - 1] = new
            left = left.clone()
            left[:, at] = left[:, at].scatter(-1, new[..., None], 0.0)
        growing = [i for i in shape.level(level + 1) if shape.children[i]]
        if not growing:
            break
        up = torch.tensor([inner.index(shape.parents[i - 1]) for i in growing], device=device)
        fed += growing
        above = shape.above(growing, fed).to(device)[None]
        node_codes = codes[:, [i - 1 for i in growing]]
        predicted = state.feed(node_codes, predicted[:, up], above, level)
        inner = growing
    width = max(len(children) for children in shape.children)
    return Tree(codes, parents, tree_probs, width, shape.depth)


class TreeShape:
    """A fixed tree.

    Args:
        paths: each node as the ranks of the children that lead to it, such as [0, 2].

    Attributes:
        parents: number of each node's parent, nodes numbered from 1 by level.
        children: numbers of each number's children, by rank.
        depth: number of levels.
    """

    def __init__(self, paths: Sequence[Sequence[int]]) -> None:
        ordered = sorted({tuple(int(r) for r in path) for path in paths}, key=lambda p: (len(p), p))
        numbers: dict[tuple[int, ...], int] = {(): 0}
        self.parents: list[int] = []
        self.children: list[list[int]] = [[]]
        self._levels = [0]
        for path in ordered:
            parent = numbers.get(path[:-1]) if path else None
            if parent is None or path[-1] != len(self.children[parent]):
                raise UserError(
                    f"The tree has a node {list(path)} without its parent or an earlier sibling; "
                    "give every node on the way to it."
                )
            numbers[path] = len(numbers)
            self.children[parent].append(numbers[path])
            self.children.append([])
            self.parents.append(parent)
            self._levels.append(len(path))
        if not self.parents:
            raise UserError("A tree of drafts needs at least one node.")
        self.depth = max(self._levels)

    def level(self, level: int) -> list[int]:
        """Return the numbers of the nodes of a level."""
        return [number for number, own in enumerate(self._levels) if own == level]

    def above(self, nodes: list[int], fed: list[int]) -> Tensor:
        """Return whether each of `fed` is above or equal to each of `nodes`, boolean (n, fed)."""
        rows = []
        for node in nodes:
            line = set()
            while node:
                line.add(node)
                node = self.parents[node - 1]
            rows.append([other in line for other in fed])
        return torch.tensor(rows)

    @classmethod
    def ranked(cls, nodes: int, *, width: int = 10, depth: int = 5) -> TreeShape:
        """Make a tree that is wide where drafts are likely: low ranks, near the root."""
        cost = lambda path: (sum(1 + rank for rank in path), path)  # noqa: E731
        limit = range(min(width, nodes))
        paths = [p for d in range(1, depth + 1) for p in product(limit, repeat=d) if sum(p) < 12]
        return cls(sorted(paths, key=cost)[:nodes])


def _log_probs(state: FeatureDrafterState, hidden: Tensor, level: int) -> Tensor:
    """Return log probabilities (B, n, V) after predicted hidden vectors (R, n, D)."""
    empty = torch.zeros(len(state.length_B), hidden.shape[1], 1, dtype=torch.long)
    return state.distributions(hidden, level).probs(empty.to(hidden.device))[:, :, 0].log()


def _best(log_probs: Tensor, width: int) -> tuple[Tensor, Tensor]:
    best = log_probs.topk(width, dim=-1)
    return best.values, best.indices
