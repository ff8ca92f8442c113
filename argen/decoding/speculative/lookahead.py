"""One pass, many codes: drafts are tested together and the kept ones become final.

A pass of the generator scores k drafts at once. Each is kept or replaced by the rule of an
`Acceptance`; what stands before the first replacement, and the replacement, are final. Rows move
on at their own pace, and everything is a tensor operation over rows and slots.

Names: B samples, L codes, k drafts, n = k + 1 slots of a window, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from argen.decoding.base import Decoder, DecodeResult, Observer
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.speculative.acceptance import Acceptance
from argen.decoding.speculative.decisions import Draws
from argen.decoding.speculative.distributions import Laws, guidance_weights, law_type, twice
from argen.decoding.speculative.drafters import Draft, Drafter, Verdict
from argen.decoding.speculative.state import Progress
from argen.decoding.speculative.verifier import verify
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond
from argen.generators.heads.base import Head
from argen.layers.noise import Noise


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
        """Whether kept and replaced drafts follow the generator's own law."""
        return self.acceptance.exact

    def check(self, generator: Generator) -> None:
        """Raise unless one pass of the generator can score drafts of listed laws."""
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
                f"decoder `{self.name}` tests drafts by their probability; {name} draws "
                f"{generator.spec.kind} codes without a listed law: use decoder=sequential."
            )
        if self.window is not None and self.window > generator.spec.length:
            raise UserError(
                f"window={self.window} is longer than the {generator.spec.length} codes of a "
                f"image; use at most {generator.spec.length}."
            )
        self.drafter.check(generator)
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
        run = self.begin(generator, cond, guidance=guidance, filters=filters)
        draws, accepted, unfinished = Draws(noise), [], True
        while unfinished:
            run, unfinished = self.step(generator, run, draws)
            assert run.verdict is not None
            accepted.append(run.verdict.matched_B)
            if observer is not None:
                observer(*self._finished(run, generator.head))
        return DecodeResult(self.codes(generator, run), len(accepted), torch.stack(accepted))

    def begin(
        self, generator: Generator, cond: Cond, *, guidance: Guidance, filters: Filters
    ) -> Progress:
        """Return a run of B = len(cond) samples with nothing drawn yet."""
        L, G, B = generator.spec.length, len(generator.head.id_sizes), len(cond)
        k = (self.window or min(self.usual_window, L)) - 1
        _, device = law_type(generator)
        order = [position for group in generator.plan.groups for position in group]
        zeros = torch.zeros(B, dtype=torch.long, device=device)
        width_B = self._widths(zeros - 1, zeros, L, k)
        return Progress(
            # One draft more: rows that are done still take part, behind the last code.
            state=generator.start(
                guidance.rows(generator, cond), longest_draft=k + 1 + self.branches
            ),
            memory=self.drafter.start(generator, cond, guidance=guidance, filters=filters, k=k),
            codes=torch.zeros(B, L + k + 1, G, dtype=torch.long, device=device),
            length_B=zeros,
            width_B=width_B,
            most=k,
            k=int(width_B.max()),
            number=0,
            weights=guidance_weights(guidance, generator),
            filters=filters,
            order_L=torch.tensor(order, device=device),
        )

    def step(self, generator: Generator, run: Progress, draws: Draws) -> tuple[Progress, bool]:
        """Make one pass.

        Args:
            generator: the target.
            run: from `begin` or the last step; its state and memory are changed.
            draws: random decisions.

        Returns:
            the run after the pass, and whether any row is unfinished.
        """
        L, guided, k = generator.spec.length, run.weights is not None, run.k
        slots = torch.arange(k + 1, device=run.length_B.device)
        steps = run.length_B[:, None] + slots  # B n
        positions = run.order_L[steps.clamp(max=L - 1)]
        draft = self.drafter.propose(
            run.memory, run.width_B, k, positions[:, :k], draws, run.number
        )
        fed = generator.head.to_codes(draft.codes)
        params = generator.predict(run.state, twice(fed, guided) if k else None)
        laws = Laws(generator.head, params, steps, run.weights, run.filters)
        tested = verify(
            draft,
            laws,
            positions,
            draws,
            run.number,
            acceptance=self.acceptance,
            behind=self.drafter.behind,
        )
        return self.settle(generator, run, draft, laws, *tested)

    def settle(
        self,
        generator: Generator,
        run: Progress,
        draft: Draft,
        laws: Laws,
        ids: Tensor,
        law: Tensor,
        matched_B: Tensor,
        *,
        path: Tensor | None = None,
    ) -> tuple[Progress, bool]:
        """Make the first codes of each row final and get ready for the next pass.

        Args:
            generator: the target.
            run: the run before the pass.
            draft: what was tested.
            laws: of the slots.
            ids: (B, n, G), final below `matched_B`.
            law: the laws (B, n, G, V) that the ids have now.
            matched_B: codes that become final.
            path: numbers of the tree's nodes that they were, where there was a tree.
        """
        L, guided = generator.spec.length, run.weights is not None
        matched_B = torch.where(run.length_B < L, matched_B, 0)
        verdict = Verdict(draft, run.length_B, ids, law, matched_B)
        new = twice(generator.head.to_codes(ids), guided)
        options = {} if path is None else {"path": twice(path, guided)}
        generator.commit(run.state, new, counts=twice(matched_B, guided), **options)
        after_B = run.length_B + matched_B
        width_B = self._widths(run.length_B, after_B, L, run.most)
        # The one thing the host must know: how far the next pass reaches.
        k, left = torch.stack((width_B.max(), (L - after_B).max())).tolist()
        steps = run.length_B[:, None] + torch.arange(ids.shape[1], device=ids.device)
        run = replace(
            run,
            memory=self.drafter.observe(run.memory, verdict),
            codes=run.codes.scatter(1, steps[..., None].expand_as(ids), ids),
            length_B=after_B,
            width_B=width_B,
            k=k,
            number=run.number + 1,
            verdict=verdict,
            laws=laws,
        )
        return run, left > 0

    def codes(self, generator: Generator, run: Progress) -> Tensor:
        """Return the codes (B, L) or (B, L, G) in the tokenizer's order."""
        drawn = run.codes[:, : generator.spec.length]
        return generator.head.to_codes(drawn[:, run.order_L.argsort()])

    def _widths(self, before_B: Tensor, length_B: Tensor, codes: int, most: int) -> Tensor:
        """Return how many drafts each row takes in the next pass; the last code needs none.

        Args:
            before_B: final codes before the last pass.
            length_B: final codes now.
            codes: L.
            most: drafts of a full window.
        """
        width_B = torch.full_like(length_B, most)
        if self.interval is not None:
            # As published: the rule looks at the length before the pass just made.
            low, high = self.interval
            inside = (before_B > low) & (before_B <= high)
            width_B = torch.where(inside, (high - before_B).clamp(0, most), 0)
        return torch.minimum(width_B, (codes - length_B - 1).clamp(min=0))

    def _finished(self, run: Progress, head: Head) -> tuple[Tensor, Tensor, Tensor]:
        """Return positions (B, n), codes and guided logits that the last pass made final."""
        verdict = run.verdict
        assert verdict is not None
        assert run.laws is not None
        slots = torch.arange(verdict.codes.shape[1], device=run.length_B.device)
        steps = verdict.start_B[:, None] + slots
        positions = run.order_L[steps.clamp(max=len(run.order_L) - 1)]
        positions = torch.where(slots < verdict.matched_B[:, None], positions, -1)
        logits = run.laws.logits(verdict.codes)
        logits = logits[:, :, 0] if len(head.id_sizes) == 1 else logits
        return positions, head.to_codes(verdict.codes), logits
