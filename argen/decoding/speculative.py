"""One pass, many codes: drafts are tested together and the kept ones become final.

A pass of the generator scores k drafts at once. Each is kept or replaced by the rule of an
`Acceptance`; what stands before the first replacement, and the replacement, are final. Rows move
on at their own pace, and everything is a tensor operation over rows and slots.

Names: B samples, L codes, k drafts, n = k + 1 slots of a window, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from argen.decoding.acceptance import Acceptance, Rejection
from argen.decoding.base import Decoder, DecodeResult, Observer
from argen.decoding.drafters import Drafter, ModelDrafter, Verdict, take_slots
from argen.decoding.draws import FRESH, KEEP, REPAIR, Draws, use_of
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.laws import Laws, guidance_weights, law_type, twice
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond
from argen.generators.heads import Head
from argen.layers.noise import Noise


@dataclass
class Progress:
    """A batch half drawn.

    Attributes:
        state: the generator's own.
        memory: the drafter's own.
        codes: sub-tokens (B, L + n, G) in the order they are drawn; final below `length_B`.
        length_B: final codes.
        width_B: drafts of each row in the next pass.
        k: the largest of them, on the host.
        number: passes made.
        weight_L: guidance weight of each step, or None.
        filters: logit filters.
        order_L: position of each step.
        verdict: of the last pass.
        logits: guided logits of the last pass (B, n, G, V), before the filters.
    """

    state: Any
    memory: Any
    codes: Tensor
    length_B: Tensor
    width_B: Tensor
    k: int
    number: int
    weight_L: Tensor | None
    filters: Filters
    order_L: Tensor
    verdict: Verdict | None = None
    logits: Tensor | None = None

    def rows(self, index: Tensor) -> Progress:
        """Return a copy of some rows, for generators and drafters whose state can be copied."""
        both = index
        if self.weight_L is not None:
            both = torch.cat((index, index + len(self.length_B)))
        return replace(
            self,
            state=self.state.rows(both),
            memory=self.memory.rows(index),
            codes=self.codes[index],
            length_B=self.length_B[index],
            width_B=self.width_B[index],
            verdict=None,
            logits=None,
        )


class LookAhead(Decoder):
    """Drafter x Acceptance on one verifier; the strategies of this family are choices of the two.

    Args:
        drafter: where drafts come from.
        acceptance: whether they are kept.
        window: tokens fed in a pass: the last final code and up to window - 1 drafts.
        interval: (l, r): drafts are used only in passes after one that began with more than l and
            at most r final codes, and never past code r + 1; else one code a pass. It is the
            published `jacobi_loop_interval`; None uses drafts always.
    """

    name = "look-ahead"

    def __init__(
        self,
        *,
        drafter: Drafter,
        acceptance: Acceptance,
        window: int,
        interval: tuple[int, int] | None = None,
    ) -> None:
        if window < 2:
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
        if (
            generator.spec.kind != "discrete"
            or type(generator.head).conditional is Head.conditional
        ):
            raise IncompatibleError(
                f"decoder `{self.name}` tests drafts by their probability; {name} draws "
                f"{generator.spec.kind} codes without a listed law: use decoder=sequential."
            )
        if self.window > generator.spec.length:
            raise UserError(
                f"window={self.window} is longer than the {generator.spec.length} codes of a "
                f"picture; use at most {generator.spec.length}."
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
        k = self.window - 1
        _, device = law_type(generator)
        order = [position for group in generator.plan.groups for position in group]
        zeros = torch.zeros(B, dtype=torch.long, device=device)
        width_B = self._widths(zeros - 1, zeros, L)
        return Progress(
            # One draft more: rows that are done still take part, behind the last code.
            state=generator.start(guidance.rows(generator, cond), longest_draft=k + 1),
            memory=self.drafter.start(generator, cond, guidance=guidance, filters=filters, k=k),
            codes=torch.zeros(B, L + k + 1, G, dtype=torch.long, device=device),
            length_B=zeros,
            width_B=width_B,
            k=int(width_B.max()),
            number=0,
            weight_L=guidance_weights(guidance, generator),
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
        L, guided, k = generator.spec.length, run.weight_L is not None, run.k
        slots = torch.arange(k + 1, device=run.length_B.device)
        steps = run.length_B[:, None] + slots  # B n
        positions = run.order_L[steps.clamp(max=L - 1)]
        draft = self.drafter.propose(
            run.memory, run.width_B, k, positions[:, :k], draws, run.number
        )
        fed = generator.head.to_codes(draft.codes)
        params = generator.predict(run.state, twice(fed, guided) if k else None)
        laws = Laws(generator.head, params, steps, run.weight_L, run.filters)
        codes, law, matched_B = self.verify(draft, laws, positions, draws, run.number)
        matched_B = torch.where(run.length_B < L, matched_B, 0)
        verdict = Verdict(draft, run.length_B, codes, law, matched_B)
        new = twice(generator.head.to_codes(codes), guided)
        generator.commit(run.state, new, counts=twice(matched_B, guided))
        after_B = run.length_B + matched_B
        width_B = self._widths(run.length_B, after_B, L)
        # The one thing the host must know: how far the next pass reaches.
        k, left = torch.stack((width_B.max(), (L - after_B).max())).tolist()
        run = replace(
            run,
            memory=self.drafter.observe(run.memory, verdict),
            codes=run.codes.scatter(1, steps[..., None].expand_as(codes), codes),
            length_B=after_B,
            width_B=width_B,
            k=k,
            number=run.number + 1,
            verdict=verdict,
            logits=laws.logits(codes),
        )
        return run, left > 0

    def codes(self, generator: Generator, run: Progress) -> Tensor:
        """Return the codes (B, L) or (B, L, G) in the tokenizer's order."""
        drawn = run.codes[:, : generator.spec.length]
        return generator.head.to_codes(drawn[:, run.order_L.argsort()])

    def _widths(self, before_B: Tensor, length_B: Tensor, codes: int) -> Tensor:
        """Return how many drafts each row takes in the next pass; the last code needs none.

        Args:
            before_B: final codes before the last pass.
            length_B: final codes now.
            codes: L.
        """
        width_B = torch.full_like(length_B, self.window - 1)
        if self.interval is not None:
            # As published: the rule looks at the length before the pass just made.
            low, high = self.interval
            inside = (before_B > low) & (before_B <= high)
            width_B = torch.where(inside, (high - before_B).clamp(0, self.window - 1), 0)
        return torch.minimum(width_B, (codes - length_B - 1).clamp(min=0))

    def verify(
        self, draft: Any, laws: Laws, positions: Tensor, draws: Draws, number: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep or replace drafts; returns codes and laws of all slots and how many are final."""
        B, k, G = draft.codes.shape
        behind, width = self.drafter.behind, draft.width_B[:, None]
        slots = torch.arange(k + 1, device=positions.device).expand(B, k + 1)
        codes = torch.cat((draft.codes, draft.codes.new_zeros(B, 1, G)), dim=1)
        law = laws.given(codes)  # B n G V, along the drafts
        fixed = torch.zeros_like(slots)  # sub-tokens of a slot that are settled
        accepted_B = torch.zeros_like(draft.width_B)
        if k:
            p, here = law[:, :k], slots[:, :k] < width
            chance = self.acceptance.chance(p, draft.laws, draft.codes)
            kept = draws.keep(
                chance,
                positions[:, :k],
                use=use_of(KEEP, number),
                matters=here,
                chain=behind != "continue",
            )
            settled = kept.long().cumprod(-1).sum(-1)  # B k, sub-tokens kept
            accepted_B = (settled == G).long().cumprod(1).sum(1)
            at = slots[:, :k] if behind == "continue" else accepted_B.clamp(max=k - 1)[:, None]
            sub = take_slots(settled, at)  # which sub-token is replaced
            wrong = take_slots(here, at) & (sub < G)
            if behind != "continue":
                wrong &= (accepted_B < draft.width_B)[:, None]
            repair = self.acceptance.repair(
                _sub(take_slots(p, at), sub),
                _sub(take_slots(draft.laws, at), sub),
                _sub(take_slots(draft.codes, at)[..., None], sub)[..., 0],
            )
            new = draws.choose(
                repair, take_slots(positions, at), use=use_of(REPAIR, number), matters=wrong
            )
            codes = _replace(codes, at, sub, new, wrong)
            fixed[:, :k] = torch.where(here, (settled + 1).clamp(max=G), 0)
            if behind != "continue":
                fixed = torch.where(slots <= accepted_B[:, None], fixed, 0)
        open_slots = slots <= (accepted_B[:, None] if behind == "nothing" else width)
        for g in range(G):
            matters = open_slots & (fixed <= g)
            law = laws.given(codes)
            if behind == "race":
                new = draws.race(law[:, :, g], positions, matters=matters, sub=g)
            else:
                new = draws.choose(
                    law[:, :, g],
                    positions,
                    use=use_of(FRESH, number),
                    matters=matters,
                    sub=g,
                    subs=G,
                )
            codes = torch.cat(
                (
                    codes[..., :g],
                    torch.where(fixed <= g, new, codes[..., g])[..., None],
                    codes[..., g + 1 :],
                ),
                dim=-1,
            )
        return codes, laws.given(codes), accepted_B + 1

    def _finished(self, run: Progress, head: Head) -> tuple[Tensor, Tensor, Tensor]:
        """Return positions (B, n), codes and guided logits that the last pass made final."""
        verdict = run.verdict
        assert verdict is not None
        assert run.logits is not None
        slots = torch.arange(verdict.codes.shape[1], device=run.length_B.device)
        steps = verdict.start_B[:, None] + slots
        positions = run.order_L[steps.clamp(max=len(run.order_L) - 1)]
        positions = torch.where(slots < verdict.matched_B[:, None], positions, -1)
        logits = run.logits[:, :, 0] if len(head.id_sizes) == 1 else run.logits
        return positions, head.to_codes(verdict.codes), logits


class Speculative(LookAhead):
    """Drafts from a smaller generator on the same codes, tested by rejection sampling.

    Exact: the codes follow the large model's law whatever the small one is (arXiv 2211.17192,
    2302.01318).

    Args:
        draft: the smaller generator.
        window: tokens fed in a pass: the last final code and window - 1 drafts.
    """

    name = "speculative"

    def __init__(self, draft: Generator, *, window: int = 5) -> None:
        super().__init__(drafter=ModelDrafter(draft), acceptance=Rejection(), window=window)


def _sub(laws: Tensor, sub: Tensor) -> Tensor:
    """Return the laws (B, s, V) of sub-tokens `sub` (B, s) of (B, s, G, V)."""
    index = sub.clamp(max=laws.shape[2] - 1)[..., None, None].expand(*sub.shape, 1, laws.shape[-1])
    return laws.gather(2, index)[:, :, 0]


def _replace(codes: Tensor, at: Tensor, sub: Tensor, new: Tensor, where: Tensor) -> Tensor:
    """Put ids `new` (B, s) at slots `at` and sub-tokens `sub` of codes (B, n, G), where true."""
    rows = torch.arange(len(codes), device=codes.device)[:, None].expand_as(at)
    sub = sub.clamp(max=codes.shape[-1] - 1)
    out = codes.clone()
    out[rows, at, sub] = torch.where(where, new, codes[rows, at, sub])
    return out
