"""LANTERN and LANTERN++: trees of drafts from a trained drafter, tested loosely.

A pass of the target scores a whole tree; the longest kept path and one code more become final.
With k = 0 neighbours the test is plain and the codes follow the target's own law exactly.

Names: R rows (samples, doubled under guidance), B samples, L codes, N nodes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from argen.decoding.base import Decoder, DecodeResult, Observer
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.speculative.decisions import FRESH, Draws, use_of
from argen.decoding.speculative.distributions import Laws, guidance_weights, twice
from argen.decoding.speculative.neighbours import NeighbourRejection, nearest_codes
from argen.decoding.speculative.tree_drafter import (
    FeatureMemory,
    TreeShape,
    grow_drawn,
    grow_likeliest,
)
from argen.decoding.speculative.trees import Tree, walk
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond
from argen.generators.drafter.feature_drafter import FeatureDrafter, load_drafter
from argen.generators.next_token import NextToken, NextTokenState
from argen.layers.noise import Noise
from argen.layers.tree import levels


@dataclass
class TreeRun:
    """A batch half drawn.

    Attributes:
        state: the target's.
        memory: the drafter's.
        codes: (B, L + levels) in the order they are drawn; final below the memory's `length_B`.
        number: passes made.
        finished: what the last pass made final: steps (B, n) or -1, codes, guided logits.
    """

    state: NextTokenState
    memory: FeatureMemory
    codes: Tensor
    number: int
    finished: tuple[Tensor, Tensor, Tensor] | None = None


class Relaxed(Decoder):
    """Speculative decoding with a feature drafter, trees of drafts and relaxed acceptance.

    Args:
        drafter: the drafter network, or the directory it was saved in.
        tree: `dynamic`, the likeliest paths (LANTERN); `static`, a fixed shape of drafts drawn
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
        self.acceptance = NeighbourRejection(k=k, delta=delta, certain=self.shape is None)

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

    @torch.inference_mode()
    def __call__(
        self,
        generator: Generator,
        cond: Cond,
        *,
        guidance: Guidance,
        filters: Filters,
        noise: Noise,
        observer: Observer | None = None,
    ) -> DecodeResult:
        """Draw the codes of B = len(cond) samples; every row takes the passes it needs."""
        self.check(generator)
        assert isinstance(generator, NextToken)
        run = self.begin(generator, cond, guidance=guidance, filters=filters)
        order = torch.tensor([p for group in generator.plan.groups for p in group])
        order_L, draws = order.to(run.codes.device), Draws(noise)
        accepted, unfinished = [], True
        while unfinished:
            matched_B, unfinished = self.step(generator, run, draws, order_L)
            accepted.append(matched_B)
            if observer is not None and run.finished is not None:
                steps, codes, logits = run.finished
                positions = order_L[steps.clamp(0, len(order_L) - 1)]
                observer(torch.where(steps >= 0, positions, -1), codes, logits)
        drawn = run.codes[:, : generator.spec.length]
        return DecodeResult(drawn[:, order_L.argsort()], run.number, torch.stack(accepted))

    def begin(
        self, generator: NextToken, cond: Cond, *, guidance: Guidance, filters: Filters
    ) -> TreeRun:
        """Return a run of B = len(cond) samples with nothing drawn yet."""
        assert self.drafter is not None
        rows, B, L = guidance.rows(generator, cond), len(cond), generator.spec.length
        nodes = self.nodes if self.shape is None else len(self.shape.parents)
        state = generator.start(rows, longest_draft=nodes + 1)
        device = state.codes.device
        fed = self.width * self.steps if self.shape is None else nodes
        memory = FeatureMemory(
            network=self.drafter.to(device).eval(),
            head=generator.head,
            weights=guidance_weights(guidance, generator),
            filters=filters,
            cache=self.drafter.cache(len(rows), fed + self.depth + 2),
            last=torch.zeros(len(rows), 1, self.drafter.dim, device=device),
            length_B=torch.zeros(B, dtype=torch.long, device=device),
            longest=0,
        )
        codes = torch.zeros(B, L + self.depth + 1, dtype=torch.long, device=device)
        return TreeRun(state, memory, codes, 0)

    def step(
        self, generator: NextToken, run: TreeRun, draws: Draws, order_L: Tensor
    ) -> tuple[Tensor, bool]:
        """Make one pass, changing the run.

        Returns:
            how many codes of each row became final (B,), and whether any row is unfinished.
        """
        memory, L = run.memory, generator.spec.length
        guided, length_B = memory.weights is not None, memory.length_B
        B, depth = len(length_B), self.depth if run.number else 0
        row = torch.arange(B, device=length_B.device)[:, None]
        steps = length_B[:, None] + torch.arange(depth + 1, device=length_B.device)
        positions = order_L[steps.clamp(max=L - 1)]  # B levels
        tree = self._grow(memory, positions, draws, run.number) if run.number else None
        if tree is None:
            params, level = generator.predict(run.state), torch.zeros_like(steps)
        else:
            below = levels(tree.parents).expand(B, -1)
            level = torch.cat((torch.zeros_like(row), below), dim=1)  # B N+1
            parents = tree.parents if tree.parents.ndim == 1 else twice(tree.parents, guided)
            params = generator.predict(run.state, twice(tree.codes, guided), parents=parents)
        laws = Laws(
            generator.head, params, length_B[:, None] + level, memory.weights, memory.filters
        )
        p = laws.given(torch.zeros_like(level)[..., None])[:, :, 0]  # B N+1 V
        count_B, path, law = torch.zeros_like(length_B), row.new_zeros(B, 0), p[:, 0]
        codes = row.new_zeros(B, depth + 1)
        if tree is not None:
            limit_B = (L - length_B - 1).clamp(min=0)
            kept = walk(
                tree, p, positions, draws, run.number, acceptance=self.acceptance, limit_B=limit_B
            )
            count_B, path, law = kept.count_B, kept.path, kept.law
            codes[:, :-1] = tree.codes.gather(1, (path - 1).clamp(min=0))
        live = length_B < L
        extra = draws.choose(
            law[:, None],
            positions[row, count_B[:, None]],
            use=use_of(FRESH, run.number),
            matters=live[:, None],
        )
        codes = codes.scatter(1, count_B[:, None], extra)
        matched_B = torch.where(live, count_B + 1, 0)
        generator.commit(
            run.state,
            twice(codes, guided),
            counts=twice(matched_B, guided),
            path=twice(path, guided) if tree is not None else None,
        )
        run.codes = run.codes.scatter(1, steps, codes)
        nodes = torch.cat((torch.zeros_like(row), path), dim=1)  # whose vectors drew the codes
        shown = torch.arange(depth + 1, device=row.device) < matched_B[:, None]
        run.finished = (
            torch.where(shown, steps, -1),
            codes,
            laws.logits(torch.zeros_like(level)[..., None])[:, :, 0][row, nodes],
        )
        after_B = length_B + matched_B
        # The one thing the host must know: how far the rows have come.
        longest, left = torch.stack((after_B.max(), (L - after_B).max())).tolist()
        self._observe(run, codes, nodes, matched_B, longest)
        run.number += 1
        return matched_B, left > 0

    def _grow(self, memory: FeatureMemory, positions: Tensor, draws: Draws, number: int) -> Tree:
        if self.shape is not None:
            return grow_drawn(memory, self.shape, positions, draws, number)
        return grow_likeliest(memory, width=self.width, steps=self.steps, nodes=self.nodes)

    def _observe(
        self, run: TreeRun, codes: Tensor, nodes: Tensor, matched_B: Tensor, longest: int
    ) -> None:
        """Show the drafter the codes that became final and the vectors that predicted them."""
        memory, hidden = run.memory, run.state.hidden
        assert hidden is not None
        guided = memory.weights is not None
        if run.number == 0:
            # The prefix's own vectors come before the one that predicted the first code.
            codes = torch.nn.functional.pad(codes, (memory.network.prefix_rows, 0))
        else:
            rows = torch.arange(len(hidden), device=hidden.device)[:, None]
            hidden = hidden[rows, twice(nodes, guided)]
        run.memory = memory.read(codes, hidden, matched_B, longest)
