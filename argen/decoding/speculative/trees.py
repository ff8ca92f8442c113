"""Draft trees: several guesses a position, and the walk that tests them.

A tree of N drafts hangs below the last final code. Nodes are numbered 1 to N with parents before
children; number 0 is the root, the last final code itself.

Shapes: B samples, N nodes, W most children of a node, D most levels, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from argen.decoding.speculative.acceptance import Acceptance, prob_of
from argen.decoding.speculative.decisions import BRANCH, Decisions, use_of


@dataclass
class Tree:
    """Drafts below the last final code.

    Attributes:
        codes: (B, N).
        parents: number of each node's parent, (B, N) or (N,).
        probs: distributions (B, M, V) that drafts were sampled from, the children of a node one
            after another without replacement, in the order of their numbers; None where they are
            one-hot.
        width: most children of a node W.
        depth: most levels D.
        source: which of the distributions the children of each number were sampled from,
            (N + 1,); one for each number when None.
    """

    codes: Tensor
    parents: Tensor
    probs: Tensor | None
    width: int
    depth: int
    source: Tensor | None = None

    def probs_below(self, numbers_B: Tensor) -> Tensor | None:
        """Return the distribution (B, V) that the children of these numbers were sampled from."""
        if self.probs is None:
            return None
        at = numbers_B if self.source is None else self.source[numbers_B]
        return self.probs[torch.arange(len(numbers_B), device=numbers_B.device), at]

    def children(self) -> Tensor:
        """Return the numbers (B, N + 1, W) of each number's children, in order; 0 for none."""
        parents = self.parents.expand(self.codes.shape)
        B, N = parents.shape
        same = parents[:, :, None] == parents[:, None, :]
        rank = same.tril(-1).sum(-1)  # earlier siblings
        table = parents.new_zeros(B, N + 1, self.width)
        number = torch.arange(1, N + 1, device=parents.device).expand(B, N)
        rows = torch.arange(B, device=parents.device)[:, None].expand(B, N)
        table[rows, parents, rank] = number
        return table


@dataclass
class Walk:
    """The kept part of a tree.

    Attributes:
        path: numbers of the kept nodes, root side first, (B, D); 0 behind the last.
        count_B: how many were kept.
        probs: distribution (B, V) of the code that follows them.
        tests_B: how many drafts were tested.
    """

    path: Tensor
    count_B: Tensor
    probs: Tensor
    tests_B: Tensor


def walk(
    tree: Tree,
    node_probs: Tensor,
    positions: Tensor,
    decisions: Decisions,
    number: int,
    *,
    acceptance: Acceptance,
    limit_B: Tensor,
) -> Walk:
    """Test a tree level by level, siblings one after another.

    A rejected draft changes the distribution its next sibling is tested with; the first one
    accepted ends its level. With rejection sampling the kept codes and the one that follows them
    are distributed as the model's own (multi-candidate speculative sampling).

    Args:
        tree: the drafts.
        node_probs: distribution (B, N + 1, V) of the code after each number.
        positions: positions (B, D + 1) of the levels.
        decisions: random decisions.
        number: number of the pass.
        acceptance: the rule.
        limit_B: levels each row may go down.
    """
    B, device = len(node_probs), node_probs.device
    row, table = torch.arange(B, device=device), tree.children()
    at = torch.zeros(B, dtype=torch.long, device=device)
    going = torch.ones(B, dtype=torch.bool, device=device)
    probs, tests, path = node_probs[:, 0], torch.zeros_like(at), []
    for level in range(tree.depth):
        going = going & (level < limit_B)
        sampled_from, kept = tree.probs_below(at), torch.zeros_like(at)
        q = probs if sampled_from is None else sampled_from
        for sibling in range(tree.width):
            child = table[row, at, sibling]
            here = going & (child > 0) & (kept == 0)
            draft = tree.codes[row, (child - 1).clamp(min=0)]
            given = prob_of(q, draft) > 0 if tree.probs is not None else torch.ones_like(here)
            probability = acceptance.probability(
                probs[:, None, None], q[:, None, None], draft[:, None, None]
            )
            accepted = decisions.accept(
                probability,
                positions[:, level : level + 1],
                use=use_of(BRANCH, number * tree.width + sibling),
                where=here[:, None],
                chain=False,
            )[:, 0, 0]
            tests += here
            accepted, here = accepted & given, here & given
            kept = torch.where(accepted, child, kept)
            residual = acceptance.residual(probs, q, draft)
            probs = torch.where((here & ~accepted)[:, None], residual, probs)
            if tree.probs is not None:
                q = _without(q, draft, here)
        at = torch.where(kept > 0, kept, at)
        probs = torch.where((kept > 0)[:, None], node_probs[row, at], probs)
        going = going & (kept > 0)
        path.append(kept)
    numbers = torch.stack(path, dim=1)
    return Walk(numbers, (numbers > 0).sum(1), probs, tests)


def _without(probs: Tensor, code: Tensor, where: Tensor) -> Tensor:
    """Take a code (B,) out of a distribution (B, V), where true, and normalise."""
    rest = probs.scatter(1, code[:, None], 0.0)
    total = rest.sum(-1, keepdim=True)
    rest = torch.where(total > 0, rest / total, rest)
    return torch.where(where[:, None], rest, probs)
