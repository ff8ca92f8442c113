"""LANTERN and LANTERN++: trees of drafts from a trained drafter, tested loosely.

A pass of the target scores a whole tree; the longest kept path and one code more become final.
With k = 0 neighbours the test is plain and the codes follow the target's own distribution exactly.

Shapes: R rows (samples, doubled under guidance), B samples, L codes, N nodes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from argen.decoding.base import Decoder, DecodeResult
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance, repeat_for_cfg
from argen.decoding.speculative.decisions import FRESH, Decisions, use_of
from argen.decoding.speculative.distributions import Distributions, guidance_table
from argen.decoding.speculative.neighbours import NeighbourRejection, nearest_codes
from argen.decoding.speculative.tree_drafter import (
    FeatureDrafterState,
    TreeShape,
    grow_likeliest,
    grow_sampled,
)
from argen.decoding.speculative.trees import Tree, walk
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond
from argen.generators.drafter.feature_drafter import FeatureDrafter, load_drafter
from argen.generators.next_token import NextToken, NextTokenState
from argen.layers.tree import levels


@dataclass
class TreeDecodeState:
    """A batch that is being sampled.

    Attributes:
        generator_state: the target's.
        drafter_state: the drafter's.
        codes: (B, L + levels) in the order they are sampled; final below the drafter's `length_B`.
        number: passes made.
        finished: what the last pass made final: steps (B, n) or -1, codes, guided logits.
    """

    generator_state: NextTokenState
    drafter_state: FeatureDrafterState
    codes: Tensor
    number: int
    finished: tuple[Tensor, Tensor, Tensor] | None = None


class Relaxed(Decoder):
    """Speculative decoding with a feature drafter, trees of drafts and relaxed acceptance.

    Args:
        drafter: the drafter network, or the directory it was saved in.
        tree: `dynamic`, the likeliest paths (LANTERN); `static`, a fixed shape of drafts sampled
            without replacement (LANTERN++).
        k: number of nearest codes a draft may borrow probability from; 0 makes it exact.
        delta: bound of what is borrowed; above 1, delta - 1 times the draft's own probability.
        nodes: drafts in a tree.
        width: beam of a dynamic tree, most children of a node of a static one.
        steps: levels of a tree, less one.
        branches: nodes of a static tree, each as the ranks of the children that lead to it, such
            as [[0], [1], [0, 0]]; `nodes`, `width` and `steps` make one when None.
    """

    name = "relaxed"

    def __init__(
        self,
        drafter: FeatureDrafter | str | None = None,
        *,
        tree: Literal["dynamic", "static"] = "dynamic",
        k: int = 1000,
        delta: float = 0.1,
        nodes: int = 58,
        width: int = 10,
        steps: int = 4,
        branches: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if tree not in ("dynamic", "static"):
            raise UserError(f"Unknown tree {tree!r}; use dynamic or static.")
        if nodes < 1 or width < 1 or steps < 0:
            raise UserError(f"A tree of nodes={nodes}, width={width}, steps={steps} has no drafts.")
        if branches is not None and tree != "static":
            raise UserError("branches give the shape of a static tree; use tree=static.")
        self.drafter = load_drafter(drafter) if isinstance(drafter, str) else drafter
        self.width, self.steps, self.nodes = width, steps, nodes
        self.shape: TreeShape | None = None
        if tree == "static":
            ranked = TreeShape.ranked(nodes, width=width, depth=steps + 1)
            self.shape = TreeShape(branches) if branches is not None else ranked
        self.acceptance = NeighbourRejection(k=k, delta=delta, one_hot=self.shape is None)

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Only without neighbours."""
        return self.acceptance.exact

    @property
    def depth(self) -> int:
        """Levels of a tree."""
        return self.steps + 1 if self.shape is None else self.shape.depth

    def bind(self, tokenizer: Any) -> None:
        """Find the neighbours of every code in the tokenizer's codebook."""
        k = self.acceptance.k
        if not k:
            return
        table = getattr(getattr(tokenizer, "quantizer", None), "codebook", None)
        if not isinstance(table, torch.nn.Embedding):
            name = type(tokenizer).__name__
            raise IncompatibleError(
                f"decoder `relaxed` needs a tokenizer with one codebook; {name} has none: use k=0, "
                "or decoder=jacobi."
            )
        if k + 1 >= len(table.weight):
            raise UserError(
                f"k={k} neighbours in a codebook of {len(table.weight)} codes; use at most "
                f"{len(table.weight) - 2}."
            )
        self.acceptance.nearest = nearest_codes(table.weight.detach(), k + 1)

    def check(self, generator: Generator) -> None:
        """Raise unless the generator scores trees and the drafter was made for it."""
        name = type(generator).__name__
        if not isinstance(generator, NextToken) or len(generator.head.id_sizes) != 1:
            fits = "jacobi" if generator.plan.lookahead else "sequential"
            raise IncompatibleError(
                f"decoder `relaxed` needs a next-token generator with one id a position, not "
                f"{name}: use decoder={fits}."
            )
        if self.drafter is None:
            raise UserError(
                "decoder `relaxed` needs a drafter trained for this generator: "
                "decoder.drafter=DIRECTORY. Without one use decoder=jacobi."
            )
        dim = generator.blocks[0].attention.out.out_features  # type: ignore[union-attr]
        own = self.drafter
        fits_target = (
            own.dim == dim
            and own.spec.length == generator.spec.length
            and own.spec.vocab_size == generator.spec.vocab_size
            and own.prefix_rows == generator.prefix_length - 1
        )
        if not fits_target:
            raise IncompatibleError(
                f"The drafter reads {own.dim} features of {own.spec.describe()} behind "
                f"{own.prefix_rows + 1} prefix tokens; {name} gives {dim} of "
                f"{generator.spec.describe()} behind {generator.prefix_length}. Train a drafter "
                "for this generator."
            )
        self.acceptance.check(generator)

    def sample(self, generator: Generator, cond: Cond, context: SamplingContext) -> DecodeResult:
        """Sample the codes of B = len(cond) images; every row takes the passes it needs."""
        assert isinstance(generator, NextToken)
        guidance, filters = context.guidance, context.filters
        state = self.begin(generator, cond, guidance=guidance, filters=filters)
        order = torch.tensor([p for group in generator.plan.groups for p in group])
        order_L, decisions = order.to(state.codes.device), Decisions(context.noise)
        accepted, unfinished = [], True
        while unfinished:
            matched_B, unfinished = self.step(generator, state, decisions, order_L)
            accepted.append(matched_B)
            if context.observer is not None and state.finished is not None:
                steps, codes, logits = state.finished
                positions = order_L[steps.clamp(0, len(order_L) - 1)]
                context.observer(torch.where(steps >= 0, positions, -1), codes, logits)
        sampled = state.codes[:, : generator.spec.length]
        return DecodeResult(sampled[:, order_L.argsort()], state.number, torch.stack(accepted))

    def begin(
        self, generator: NextToken, cond: Cond, *, guidance: Guidance, filters: Filters
    ) -> TreeDecodeState:
        """Return the state of B = len(cond) samples with nothing sampled yet."""
        assert self.drafter is not None
        rows, B, L = guidance.rows(generator, cond), len(cond), generator.spec.length
        nodes = self.nodes if self.shape is None else len(self.shape.parents)
        state = generator.start(rows, longest_draft=nodes + 1)
        device = state.codes.device
        fed = self.width * self.steps if self.shape is None else nodes
        drafter_state = FeatureDrafterState(
            network=self.drafter.to(device).eval(),
            head=generator.head,
            guidance=guidance_table(guidance, generator),
            filters=filters,
            cache=self.drafter.cache(len(rows), fed + self.depth + 2),
            last=torch.zeros(len(rows), 1, self.drafter.dim, device=device),
            length_B=torch.zeros(B, dtype=torch.long, device=device),
            longest=0,
        )
        codes = torch.zeros(B, L + self.depth + 1, dtype=torch.long, device=device)
        return TreeDecodeState(state, drafter_state, codes, 0)

    def step(
        self, generator: NextToken, state: TreeDecodeState, decisions: Decisions, order_L: Tensor
    ) -> tuple[Tensor, bool]:
        """Make one pass, changing the state.

        Returns:
            how many codes of each row became final (B,), and whether any row is unfinished.
        """
        drafter_state, L = state.drafter_state, generator.spec.length
        guided, length_B = drafter_state.guidance is not None, drafter_state.length_B
        B, depth = len(length_B), self.depth if state.number else 0
        row = torch.arange(B, device=length_B.device)[:, None]
        steps = length_B[:, None] + torch.arange(depth + 1, device=length_B.device)
        positions = order_L[steps.clamp(max=L - 1)]  # B levels
        tree = (
            self._grow(drafter_state, positions, decisions, state.number) if state.number else None
        )
        if tree is None:
            outputs, level = generator.predict(state.generator_state), torch.zeros_like(steps)
        else:
            below = levels(tree.parents).expand(B, -1)
            level = torch.cat((torch.zeros_like(row), below), dim=1)  # B N+1
            parents = (
                tree.parents if tree.parents.ndim == 1 else repeat_for_cfg(tree.parents, guided)
            )
            outputs = generator.predict(
                state.generator_state, repeat_for_cfg(tree.codes, guided), parents=parents
            )
        distributions = Distributions(
            generator.head,
            outputs,
            length_B[:, None] + level,
            drafter_state.guidance,
            drafter_state.filters,
        )
        p = distributions.probs(torch.zeros_like(level)[..., None])[:, :, 0]  # B N+1 V
        count_B, path, probs = torch.zeros_like(length_B), row.new_zeros(B, 0), p[:, 0]
        codes = row.new_zeros(B, depth + 1)
        if tree is not None:
            limit_B = (L - length_B - 1).clamp(min=0)
            kept = walk(
                tree,
                p,
                positions,
                decisions,
                state.number,
                acceptance=self.acceptance,
                limit_B=limit_B,
            )
            count_B, path, probs = kept.count_B, kept.path, kept.probs
            codes[:, :-1] = tree.codes.gather(1, (path - 1).clamp(min=0))
        live = length_B < L
        extra = decisions.choose(
            probs[:, None],
            positions[row, count_B[:, None]],
            use=use_of(FRESH, state.number),
            where=live[:, None],
        )
        codes = codes.scatter(1, count_B[:, None], extra)
        matched_B = torch.where(live, count_B + 1, 0)
        generator.commit(
            state.generator_state,
            repeat_for_cfg(codes, guided),
            counts=repeat_for_cfg(matched_B, guided),
            path=repeat_for_cfg(path, guided) if tree is not None else None,
        )
        state.codes = state.codes.scatter(1, steps, codes)
        nodes = torch.cat((torch.zeros_like(row), path), dim=1)  # whose vectors drew the codes
        shown = torch.arange(depth + 1, device=row.device) < matched_B[:, None]
        state.finished = (
            torch.where(shown, steps, -1),
            codes,
            distributions.logits(torch.zeros_like(level)[..., None])[:, :, 0][row, nodes],
        )
        after_B = length_B + matched_B
        # The one thing the host must know: how far the rows have come.
        longest, left = torch.stack((after_B.max(), (L - after_B).max())).tolist()
        self._observe(state, codes, nodes, matched_B, longest)
        state.number += 1
        return matched_B, left > 0

    def _grow(
        self,
        drafter_state: FeatureDrafterState,
        positions: Tensor,
        decisions: Decisions,
        number: int,
    ) -> Tree:
        if self.shape is not None:
            return grow_sampled(drafter_state, self.shape, positions, decisions, number)
        return grow_likeliest(drafter_state, width=self.width, steps=self.steps, nodes=self.nodes)

    def _observe(
        self, state: TreeDecodeState, codes: Tensor, nodes: Tensor, matched_B: Tensor, longest: int
    ) -> None:
        """Show the drafter the codes that became final and the vectors that predicted them."""
        drafter_state, hidden = state.drafter_state, state.generator_state.hidden
        assert hidden is not None
        guided = drafter_state.guidance is not None
        if state.number == 0:
            # The prefix's own vectors come before the one that predicted the first code.
            codes = torch.nn.functional.pad(codes, (drafter_state.network.prefix_rows, 0))
        else:
            rows = torch.arange(len(hidden), device=hidden.device)[:, None]
            hidden = hidden[rows, repeat_for_cfg(nodes, guided)]
        state.drafter_state = drafter_state.read(codes, hidden, matched_B, longest)
