"""One pass, many codes: drafts are tested together and the kept ones become final.

A pass of the generator scores k drafts at once. Each is kept or replaced by the rule of an
`Acceptance`; what stands before the first replacement, and the replacement, are final. Rows move
on at their own pace, and everything is a tensor operation over rows and slots.

Shapes: B samples, L codes, k drafts, n = k + 1 slots of a window, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from argen.decoding.base import Decoder, DecodeResult
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance, repeat_for_cfg
from argen.decoding.speculative.acceptance import Acceptance
from argen.decoding.speculative.decisions import Decisions
from argen.decoding.speculative.distributions import Distributions, guidance_table, probs_type
from argen.decoding.speculative.drafters import Draft, Drafter, VerifyResult
from argen.decoding.speculative.state import DecodeState
from argen.decoding.speculative.verifier import verify
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond
from argen.generators.heads.base import Head


class LookAhead(Decoder):
    """Drafter x Acceptance on one verifier; the strategies of this family are choices of the two.

    Args:
        drafter: where drafts come from.
        acceptance: whether they are kept.
        window: tokens fed in a pass: the last final code and up to window - 1 drafts; when None,
            `usual_window` or as many as an image has.
        interval: (l, r): drafts are used only in passes after one that began with more than l and
            at most r final codes, and never past code r + 1; else one code a pass. It is the
            published `jacobi_loop_interval`; None uses drafts always.
    """

    name = "look-ahead"
    usual_window = 32
    branches = 0  # drafts of a pass beside the window's

    def __init__(
        self,
        *,
        drafter: Drafter,
        acceptance: Acceptance,
        window: int | None = None,
        interval: tuple[int, int] | None = None,
    ) -> None:
        if window is not None and window < 2:
            raise UserError(
                f"window={window}: a window holds the last code and at least one draft, so 2 or "
                "more; use decoder=sequential for one code a pass."
            )
        self.drafter, self.acceptance, self.window = drafter, acceptance, window
        self.interval = None if interval is None else (int(interval[0]), int(interval[1]))

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether kept and replaced drafts follow the generator's own distribution."""
        return self.acceptance.exact

    def check(self, generator: Generator) -> None:
        """Raise unless the generator can score drafts and its codes have a tractable pmf."""
        plan, name = generator.plan, type(generator).__name__
        if plan.any_order or not plan.lookahead:
            instead = "masked" if plan.any_order else "sequential"
            what = "any-order" if plan.any_order else "not able to score drafts"
            raise IncompatibleError(
                f"decoder `{self.name}` needs look-ahead; generator {name} is {what}: use "
                f"decoder={instead}."
            )
        if not generator.head.id_sizes:
            raise IncompatibleError(
                f"decoder `{self.name}` tests drafts by their probability; {name} samples "
                f"{generator.spec.kind} codes without a tractable pmf: use decoder=sequential."
            )
        if self.window is not None and self.window > generator.spec.length:
            raise UserError(
                f"window={self.window} is longer than the {generator.spec.length} codes of an "
                f"image; use at most {generator.spec.length}."
            )
        self.drafter.check(generator)
        self.acceptance.check(generator)

    def sample(self, generator: Generator, cond: Cond, context: SamplingContext) -> DecodeResult:
        """Sample the codes of B = len(cond) images; every row takes the passes it needs."""
        guidance, filters = context.guidance, context.filters
        state = self.begin(generator, cond, guidance=guidance, filters=filters)
        decisions, accepted, unfinished = Decisions(context.noise), [], True
        while unfinished:
            state, unfinished = self.step(generator, state, decisions)
            assert state.verified is not None
            accepted.append(state.verified.matched_B)
            if context.observer is not None:
                context.observer(*self._finished(state, generator.head))
        return DecodeResult(self.codes(generator, state), len(accepted), torch.stack(accepted))

    def begin(
        self, generator: Generator, cond: Cond, *, guidance: Guidance, filters: Filters
    ) -> DecodeState:
        """Return the state of B = len(cond) samples with nothing sampled yet."""
        L, G, B = generator.spec.length, len(generator.head.id_sizes), len(cond)
        k = (self.window or min(self.usual_window, L)) - 1
        _, device = probs_type(generator)
        order = [position for group in generator.plan.groups for position in group]
        zeros = torch.zeros(B, dtype=torch.long, device=device)
        width_B = self._widths(zeros - 1, zeros, L, k)
        return DecodeState(
            # One draft more: rows that are done still take part, behind the last code.
            generator_state=generator.start(
                guidance.rows(generator, cond), longest_draft=k + 1 + self.branches
            ),
            drafter_state=self.drafter.start(
                generator, cond, guidance=guidance, filters=filters, k=k
            ),
            codes=torch.zeros(B, L + k + 1, G, dtype=torch.long, device=device),
            length_B=zeros,
            width_B=width_B,
            max_drafts=k,
            k=int(width_B.max()),
            number=0,
            guidance=guidance_table(guidance, generator),
            filters=filters,
            order_L=torch.tensor(order, device=device),
        )

    def step(
        self, generator: Generator, state: DecodeState, decisions: Decisions
    ) -> tuple[DecodeState, bool]:
        """Make one pass.

        Args:
            generator: the target.
            state: from `begin` or the last step; the generator's and drafter's own states in it
                are changed.
            decisions: random decisions.

        Returns:
            the state after the pass, and whether any row is unfinished.
        """
        L, guided, k = generator.spec.length, state.guidance is not None, state.k
        slots = torch.arange(k + 1, device=state.length_B.device)
        steps = state.length_B[:, None] + slots  # B n
        positions = state.order_L[steps.clamp(max=L - 1)]
        draft = self.drafter.propose(
            state.drafter_state, state.width_B, k, positions[:, :k], decisions, state.number
        )
        fed = generator.head.to_codes(draft.codes)
        outputs = generator.predict(
            state.generator_state, repeat_for_cfg(fed, guided) if k else None
        )
        distributions = Distributions(generator.head, outputs, steps, state.guidance, state.filters)
        tested = verify(
            draft,
            distributions,
            positions,
            decisions,
            state.number,
            acceptance=self.acceptance,
            after_rejection=self.drafter.after_rejection,
        )
        return self.commit(generator, state, draft, distributions, *tested)

    def commit(
        self,
        generator: Generator,
        state: DecodeState,
        draft: Draft,
        distributions: Distributions,
        ids: Tensor,
        probs: Tensor,
        matched_B: Tensor,
        *,
        path: Tensor | None = None,
    ) -> tuple[DecodeState, bool]:
        """Make the first codes of each row final and get ready for the next pass.

        Args:
            generator: the target.
            state: the state before the pass.
            draft: what was tested.
            distributions: of the slots.
            ids: (B, n, G), final below `matched_B`.
            probs: the distributions (B, n, G, V) that the ids have now.
            matched_B: codes that become final.
            path: numbers of the tree's nodes that they were, where there was a tree.
        """
        L, guided = generator.spec.length, state.guidance is not None
        matched_B = torch.where(state.length_B < L, matched_B, 0)
        verified = VerifyResult(draft, state.length_B, ids, probs, matched_B)
        new = repeat_for_cfg(generator.head.to_codes(ids), guided)
        options = {} if path is None else {"path": repeat_for_cfg(path, guided)}
        generator.commit(
            state.generator_state, new, counts=repeat_for_cfg(matched_B, guided), **options
        )
        after_B = state.length_B + matched_B
        width_B = self._widths(state.length_B, after_B, L, state.max_drafts)
        # The one thing the host must know: how far the next pass reaches.
        k, left = torch.stack((width_B.max(), (L - after_B).max())).tolist()
        steps = state.length_B[:, None] + torch.arange(ids.shape[1], device=ids.device)
        state = replace(
            state,
            drafter_state=self.drafter.observe(state.drafter_state, verified),
            codes=state.codes.scatter(1, steps[..., None].expand_as(ids), ids),
            length_B=after_B,
            width_B=width_B,
            k=k,
            number=state.number + 1,
            verified=verified,
            distributions=distributions,
        )
        return state, left > 0

    def codes(self, generator: Generator, state: DecodeState) -> Tensor:
        """Return the codes (B, L) or (B, L, G) in the tokenizer's order."""
        sampled = state.codes[:, : generator.spec.length]
        return generator.head.to_codes(sampled[:, state.order_L.argsort()])

    def _widths(self, before_B: Tensor, length_B: Tensor, codes: int, max_drafts: int) -> Tensor:
        """Return how many drafts each row takes in the next pass; the last code needs none.

        Args:
            before_B: final codes before the last pass.
            length_B: final codes now.
            codes: L.
            max_drafts: drafts of a full window.
        """
        width_B = torch.full_like(length_B, max_drafts)
        if self.interval is not None:
            # As published: the rule looks at the length before the pass just made.
            low, high = self.interval
            inside = (before_B > low) & (before_B <= high)
            width_B = torch.where(inside, (high - before_B).clamp(0, max_drafts), 0)
        return torch.minimum(width_B, (codes - length_B - 1).clamp(min=0))

    def _finished(self, state: DecodeState, head: Head) -> tuple[Tensor, Tensor, Tensor]:
        """Return positions (B, n), codes and guided logits that the last pass made final."""
        verified = state.verified
        assert verified is not None
        assert state.distributions is not None
        slots = torch.arange(verified.codes.shape[1], device=state.length_B.device)
        steps = verified.start_B[:, None] + slots
        positions = state.order_L[steps.clamp(max=len(state.order_L) - 1)]
        positions = torch.where(slots < verified.matched_B[:, None], positions, -1)
        logits = state.distributions.logits(verified.codes)
        logits = logits[:, :, 0] if len(head.id_sizes) == 1 else logits
        return positions, head.to_codes(verified.codes), logits
