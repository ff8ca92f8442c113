"""Jacobi decoding with a small tree of alternatives at the root (SJD-PAC, arXiv 2603.18599).

Most passes end at the first or second draft, where a replaced code makes the drafts behind it
stale. So each of the first levels holds several guesses drawn without replacement from the stale
law, and the test goes down the tree; behind it the drafts go on in a chain, kept or replaced one
by one with the law they now have. Exact.

Names: B samples, L codes, k drafts in the chain, N nodes of the tree, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from argen.decoding.speculative.decisions import DRAFT, FRESH, Draws, use_of
from argen.decoding.speculative.distributions import Laws, twice
from argen.decoding.speculative.drafters import Draft
from argen.decoding.speculative.jacobi import Guess, Jacobi
from argen.decoding.speculative.state import Progress
from argen.decoding.speculative.trees import Tree, walk
from argen.decoding.speculative.verifier import verify
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.next_token import NextToken
from argen.layers.tree import levels
from argen.testing.table import Table


class Proactive(Jacobi):
    """Jacobi decoding, maximally coupled, with a tree of `width` guesses on the first levels.

    Args:
        window: see `Jacobi`; the tree's other branches come on top of it.
        guess: see `Jacobi`.
        width: guesses a node.
        depth: levels of the tree; width + ... + width ** depth nodes, one chain of them the
            window's own first drafts.
    """

    name = "proactive"

    def __init__(
        self,
        *,
        window: int | None = None,
        guess: Guess = "uniform",
        width: int = 3,
        depth: int = 2,
    ) -> None:
        super().__init__(window=window, coupling="maximal", guess=guess)
        if width < 1 or depth < 1:
            raise UserError(f"width={width}, depth={depth}: a tree needs one guess and one level.")
        self.width, self.depth = width, depth

    def check(self, generator: Generator) -> None:
        """Raise unless one pass of the generator can score a tree of single ids."""
        super().check(generator)
        scores_trees = isinstance(generator, NextToken | Table)
        if not scores_trees or len(generator.head.id_sizes) != 1:
            raise IncompatibleError(
                f"decoder `proactive` needs a next-token generator with one id a position, not "
                f"{type(generator).__name__}: use decoder=jacobi."
            )

    @property
    def branches(self) -> int:  # type: ignore[override]
        """Nodes beside the window's own drafts."""
        return sum(self.width**level - 1 for level in range(1, self.depth + 1))

    def step(self, generator: Generator, run: Progress, draws: Draws) -> tuple[Progress, bool]:
        """Make one pass; see `LookAhead.step`."""
        if run.k == 0:
            return super().step(generator, run, draws)
        k, guided = run.k, run.weights is not None
        slots = torch.arange(k + 1, device=run.length_B.device)
        steps = run.length_B[:, None] + slots  # B n
        positions = run.order_L[steps.clamp(max=generator.spec.length - 1)]
        chain = self.drafter.propose(
            run.memory, run.width_B, k, positions[:, :k], draws, run.number
        )
        tree = self._tree(chain, positions, draws, run.number)
        params = generator.predict(  # type: ignore[call-arg]
            run.state, twice(tree.codes, guided), parents=tree.parents
        )
        # Numbers 0 to k are the root and the chain, the branches come after them.
        own = Laws(generator.head, params[:, : k + 1], steps, run.weights, run.filters)
        beside = run.length_B[:, None] + levels(tree.parents)[k:]
        branches = Laws(generator.head, params[:, k + 1 :], beside, run.weights, run.filters)
        p = torch.cat([part.given(_any_ids(part)) for part in (own, branches)], dim=1)[:, :, 0]
        limit_B = run.width_B.clamp(max=tree.depth)
        found = walk(
            tree,
            p,
            positions,
            draws,
            run.number,
            acceptance=self.acceptance,
            limit_B=limit_B,
        )
        # Node i of the chain is the one at level i, so the last node tells the whole path.
        last = found.path.gather(1, (limit_B - 1).clamp(min=0)[:, None])[:, 0]
        straight_B = (limit_B == 0) | (last == limit_B)
        ids, law, matched_B = verify(
            chain,
            own,
            positions,
            draws,
            run.number,
            acceptance=self.acceptance,
            behind="continue",
            sure_B=torch.where(straight_B, limit_B, 0),
        )
        at = found.count_B[:, None]
        extra = draws.choose(
            found.law[:, None],
            positions.gather(1, at),
            use=use_of(FRESH, run.number),
            matters=~straight_B[:, None],
        )
        codes = torch.nn.functional.pad(tree.codes, (1, 0)).gather(1, found.path)
        codes = torch.nn.functional.pad(codes, (0, k + 1 - codes.shape[1])).scatter(1, at, extra)
        turned = ~straight_B[:, None] & (slots <= at)
        return self.settle(
            generator,
            run,
            chain,
            own,
            torch.where(turned, codes, ids[..., 0])[..., None],
            law,
            torch.where(straight_B, matched_B, found.count_B + 1),
            path=torch.where(straight_B[:, None], 0, found.path),
        )

    def _tree(self, chain: Draft, positions: Tensor, draws: Draws, number: int) -> Tree:
        """Put the chain's drafts and other guesses of the first levels into one tree."""
        B, k = chain.codes.shape[:2]
        depth, device = min(self.depth, k), chain.codes.device
        parents, source = list(range(k)), [min(i, k - 1) for i in range(k + 1)]
        codes, above = [chain.codes[..., 0]], [0]
        for level in range(depth):
            law = chain.laws[:, level]  # B 1 V
            left = law.expand(B, len(above), -1).clone()
            # The chain's own draft was drawn first; its parent stands first of those above.
            left[:, 0] = left[:, 0].scatter(1, chain.codes[:, level], 0.0)
            below = [level + 1]
            for rank in range(self.width):
                first = 1 if rank == self.width - 1 else 0  # the chain's parent has one already
                if first == len(above):
                    continue
                total = left[:, first:].sum(-1, keepdim=True)
                nodes = torch.arange(len(above) - first, device=device) + len(parents)
                new = draws.choose(
                    left[:, first:] / total.clamp(min=torch.finfo(total.dtype).tiny),
                    # Every node has noise of its own.
                    positions[:, level : level + 1] + _APART * (nodes + 1),
                    use=use_of(DRAFT, number),
                    matters=(total[..., 0] > 0) & (level < chain.width_B)[:, None],
                )
                left[:, first:] = left[:, first:].scatter(-1, new[..., None], 0.0)
                codes.append(new)
                below += [len(parents) + 1 + i for i in range(new.shape[1])]
                source += [min(level + 1, k - 1)] * new.shape[1]
                parents += above[first:]
            above = below
        return Tree(
            codes=torch.cat(codes, dim=1),
            parents=torch.tensor(parents, device=device),
            laws=chain.laws[:, :, 0],
            width=self.width,
            depth=depth,
            source=torch.tensor(source, device=device),
        )


_APART = 1 << 20  # more than any image has positions


def _any_ids(laws: Laws) -> Tensor:
    """Return ids of the right shape, for laws that do not depend on them."""
    rows = len(laws.params) if laws.weight_Bn is None else len(laws.params) // 2
    return torch.zeros(rows, laws.params.shape[1], 1, dtype=torch.long, device=laws.params.device)
