"""Jacobi decoding with a small tree of alternatives at the root (SJD-PAC, arXiv 2603.18599).

Most passes end at the first or second draft, where a replaced code makes the drafts behind it
stale. So each of the first levels holds several guesses sampled without replacement from the
stale distribution, and the test goes down the tree; behind it the drafts go on in a chain, kept or
replaced one by one with the distribution they now have. Exact.

Shapes: B samples, L codes, k drafts in the chain, N nodes of the tree, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from argen.decoding.guidance import repeat_for_cfg
from argen.decoding.speculative.decisions import DRAFT, FRESH, Decisions, use_of
from argen.decoding.speculative.distributions import Distributions
from argen.decoding.speculative.drafters import Draft
from argen.decoding.speculative.jacobi import Guess, Jacobi
from argen.decoding.speculative.state import DecodeState
from argen.decoding.speculative.trees import Tree, walk
from argen.decoding.speculative.verifier import verify
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator
from argen.layers.tree import levels


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
        if not generator.plan.trees or len(generator.head.id_sizes) != 1:
            raise IncompatibleError(
                f"decoder `proactive` needs a next-token generator with one id a position, not "
                f"{type(generator).__name__}: use decoder=jacobi."
            )

    @property
    def branches(self) -> int:  # type: ignore[override]
        """Nodes beside the window's own drafts."""
        return sum(self.width**level - 1 for level in range(1, self.depth + 1))

    def step(
        self, generator: Generator, state: DecodeState, decisions: Decisions
    ) -> tuple[DecodeState, bool]:
        """Make one pass; see `LookAhead.step`."""
        if state.k == 0:
            return super().step(generator, state, decisions)
        k, guided = state.k, state.guidance is not None
        slots = torch.arange(k + 1, device=state.length_B.device)
        steps = state.length_B[:, None] + slots  # B n
        positions = state.order_L[steps.clamp(max=generator.spec.length - 1)]
        chain = self.drafter.propose(
            state.drafter_state, state.width_B, k, positions[:, :k], decisions, state.number
        )
        tree = self._tree(chain, positions, decisions, state.number)
        outputs = generator.predict(  # type: ignore[call-arg]
            state.generator_state, repeat_for_cfg(tree.codes, guided), parents=tree.parents
        )
        # Numbers 0 to k are the root and the chain, the branches come after them.
        own = Distributions(
            generator.head, outputs[:, : k + 1], steps, state.guidance, state.filters
        )
        beside = state.length_B[:, None] + levels(tree.parents)[k:]
        branches = Distributions(
            generator.head, outputs[:, k + 1 :], beside, state.guidance, state.filters
        )
        p = torch.cat([part.probs(_any_ids(part)) for part in (own, branches)], dim=1)[:, :, 0]
        limit_B = state.width_B.clamp(max=tree.depth)
        found = walk(
            tree,
            p,
            positions,
            decisions,
            state.number,
            acceptance=self.acceptance,
            limit_B=limit_B,
        )
        # Node i of the chain is the one at level i, so the last node tells the whole path.
        last = found.path.gather(1, (limit_B - 1).clamp(min=0)[:, None])[:, 0]
        straight_B = (limit_B == 0) | (last == limit_B)
        ids, probs, matched_B = verify(
            chain,
            own,
            positions,
            decisions,
            state.number,
            acceptance=self.acceptance,
            after_rejection="continue",
            accepted_before_B=torch.where(straight_B, limit_B, 0),
        )
        at = found.count_B[:, None]
        extra = decisions.choose(
            found.probs[:, None],
            positions.gather(1, at),
            use=use_of(FRESH, state.number),
            where=~straight_B[:, None],
        )
        codes = torch.nn.functional.pad(tree.codes, (1, 0)).gather(1, found.path)
        codes = torch.nn.functional.pad(codes, (0, k + 1 - codes.shape[1])).scatter(1, at, extra)
        turned = ~straight_B[:, None] & (slots <= at)
        return self.commit(
            generator,
            state,
            chain,
            own,
            torch.where(turned, codes, ids[..., 0])[..., None],
            probs,
            torch.where(straight_B, matched_B, found.count_B + 1),
            path=torch.where(straight_B[:, None], 0, found.path),
        )

    def _tree(self, chain: Draft, positions: Tensor, decisions: Decisions, number: int) -> Tree:
        """Put the chain's drafts and other guesses of the first levels into one tree."""
        B, k = chain.codes.shape[:2]
        depth, device = min(self.depth, k), chain.codes.device
        parents, source = list(range(k)), [min(i, k - 1) for i in range(k + 1)]
        codes, above = [chain.codes[..., 0]], [0]
        for level in range(depth):
            probs = chain.probs[:, level]  # B 1 V
            left = probs.expand(B, len(above), -1).clone()
            # The chain's own draft was sampled first; its parent stands first of those above.
            left[:, 0] = left[:, 0].scatter(1, chain.codes[:, level], 0.0)
            below = [level + 1]
            for rank in range(self.width):
                first = 1 if rank == self.width - 1 else 0  # the chain's parent has one already
                if first == len(above):
                    continue
                total = left[:, first:].sum(-1, keepdim=True)
                nodes = torch.arange(len(above) - first, device=device) + len(parents)
                new = decisions.choose(
                    left[:, first:] / total.clamp(min=torch.finfo(total.dtype).tiny),
                    # Every node has noise of its own.
                    positions[:, level : level + 1] + _APART * (nodes + 1),
                    use=use_of(DRAFT, number),
                    where=(total[..., 0] > 0) & (level < chain.width_B)[:, None],
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
            probs=chain.probs[:, :, 0],
            width=self.width,
            depth=depth,
            source=torch.tensor(source, device=device),
        )


_APART = 1 << 20  # more than any image has positions


def _any_ids(distributions: Distributions) -> Tensor:
    """Return ids of the right shape, for distributions that do not depend on them."""
    outputs = distributions.outputs
    rows = len(outputs) if distributions.guidance is None else len(outputs) // 2
    return torch.zeros(rows, outputs.shape[1], 1, dtype=torch.long, device=outputs.device)
