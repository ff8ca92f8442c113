"""The plain strategy: one pass a group, in the generator's own order or in another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from argen.decoding.base import Decoder, DecodeResult, Observer
from argen.decoding.compiled import FixedLoop, unfit
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.known import Known
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond
from argen.generators.next_token import NextToken
from argen.layers.noise import Noise, SeededNoise

ORDER = 1 << 20  # the `use` of the draws that order the positions; heads count theirs from 0


class Sequential(Decoder):
    """Draw group after group, each given all groups before it, with a key/value cache.

    Args:
        order: `plan` follows the generator; `random` draws an order for every sample and
            `known_first` puts the codes that are given first, so that all others see them. These
            two need a generator trained on permuted orders (RAR).
        compile: for next-token generators, compile a pass, and on a GPU replay it as a CUDA graph
            with no word to the host between codes. Worth its start (a minute) for many images;
            rounding, and so an image now and then, differs from the plain loop's.
    """

    exact = True
    takes_known = True

    def __init__(self, order: str = "plan", *, compile: bool = False) -> None:
        if order not in ("plan", "random", "known_first"):
            raise UserError(f"Unknown order {order!r}; use plan, random or known_first.")
        self.order, self.compile = order, compile
        self._loops: dict[Any, FixedLoop] = {}

    def check(self, generator: Generator) -> None:
        """Raise if the generator has no order, or another one than asked for."""
        name = type(generator).__name__
        if generator.plan.any_order:
            raise IncompatibleError(
                f"decoder `sequential` follows a fixed order; {name} draws random subsets: use "
                "decoder=masked."
            )
        if self.order != "plan" and not generator.plan.permutable:
            raise IncompatibleError(
                f"decoder `sequential` with order={self.order} needs a generator trained on "
                f"permuted orders, such as RAR; {name} has one order: use order=plan."
            )
        if self.compile and not isinstance(generator, NextToken):
            raise IncompatibleError(
                f"compile=true of decoder `sequential` is for generators that draw one code a "
                f"pass; {name} does not: leave it out."
            )

    def most_rows(self, generator: Generator, batch_size: int) -> int | None:
        """Return those of the largest group."""
        return 2 * batch_size * max(len(group) for group in generator.plan.groups)

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
        known: tuple[Tensor, Tensor] | None = None,
    ) -> DecodeResult:
        """Draw the codes of B = len(cond) samples in at most len(plan.groups) passes.

        Args:
            generator: any generator with an order.
            cond: the conditions.
            guidance: weight and schedule.
            filters: cut the logits.
            noise: draws of the head, and of the order.
            observer: is told of drawn groups, not of codes that are given.
            known: positions (n,) or (B, n) and codes (n, ...) or (B, n, ...) that are given
                beforehand, for completion and inpainting. Codes drawn before a given one do not
                see it.
        """
        self.check(generator)
        B, rows = len(cond), guidance.rows(generator, cond)
        copies = len(rows) // B
        device = next(generator.parameters()).device
        given = None
        if known is not None:
            given = Known.at(*known, spec=generator.spec, batch=B, device=device)
        order_BL = self._draw_order(generator, noise, given, B)
        options: dict[str, Any] = {}
        if order_BL is None:
            groups = [torch.tensor(group, device=device) for group in generator.plan.groups]
        else:
            order_BL = order_BL.to(device)
            groups = list(order_BL.split(1, dim=1))
            options["order"] = order_BL.repeat(copies, 1)
        runs = [0] * len(groups)
        if given is not None and generator.plan.lookahead:
            runs = known_runs(given, groups)
            options["longest_draft"] = max(runs)
        loop = None
        if self.compile and given is None:
            loop = self._loop(generator, rows, guidance, filters, noise, options.get("order"))
        state = generator.start(rows, **options) if loop is None else loop.state
        step, passes, drawn = 0, 0, []
        while step < len(groups):
            if loop is not None and step:
                if step == 1:
                    loop.begin()
                positions, codes, guided = loop.step()
                drawn.append(codes.clone())
                if observer is not None:
                    observer(positions, drawn[-1], guided)
                step, passes = step + 1, passes + 1
                continue
            draft = None
            if given is not None and runs[step]:
                # A run of given codes is fed in one pass, which also predicts what follows it.
                columns = torch.cat(
                    [p.expand(B, -1) for p in groups[step : step + runs[step]]], dim=1
                )
                draft = given.codes[torch.arange(B, device=device)[:, None], columns]
                drawn.append(draft)
                step += runs[step]
                if step == len(groups):
                    break
                draft = draft.repeat(copies, *(1,) * (draft.ndim - 1))
            params, passes = generator.predict(state, draft), passes + 1
            if draft is not None:
                generator.commit(state, draft)
                params = params[:, -1:]
            weight, positions = guidance.weight(step, len(groups)), groups[step]
            codes = generator.head.sample(
                params, weight=weight, filters=filters, noise=noise, positions=positions
            )
            if given is not None:
                codes = given.fill(codes, positions)
            generator.commit(state, codes.repeat(copies, *(1,) * (codes.ndim - 1)))
            drawn.append(codes)
            if observer is not None:
                observer(positions, codes, generator.head.guided(params, weight))
            step += 1
        order = torch.cat([p.expand(B, -1) for p in groups], dim=1)
        row = torch.arange(B, device=device)[:, None]
        return DecodeResult(torch.cat(drawn, dim=1)[row, order.argsort(-1)], passes=passes)

    def _loop(
        self,
        generator: Generator,
        rows: Cond,
        guidance: Guidance,
        filters: Filters,
        noise: Noise,
        order: Tensor | None,
    ) -> FixedLoop:
        """Return the compiled loop of a batch shape, made anew or restarted."""
        L = generator.spec.length
        weights: list[Any] = []
        if guidance.active:
            weights = [guidance.weight(step, L) for step in range(L)]
        why = unfit(weights, noise)
        if why is not None:
            raise UserError(f"compile=true of decoder `sequential`: {why}; leave it out.")
        assert isinstance(generator, NextToken)
        assert isinstance(noise, SeededNoise)
        shapes = [None if t is None else t.shape for t in (*rows.tensors(), order)]
        key = (id(generator), str(shapes), repr(guidance), repr(filters))
        if key in self._loops:
            self._loops[key].restart(rows, order, noise)
        else:
            options: dict[str, Any] = {} if order is None else {"order": order}
            self._loops[key] = FixedLoop(
                generator,
                generator.start(rows.map(torch.clone), **options),
                copies=2 if guidance.active else 1,
                weights=weights,
                filters=filters,
                noise=noise,
            )
        return self._loops[key]

    def _draw_order(
        self, generator: Generator, noise: Noise, given: Known | None, batch: int
    ) -> Tensor | None:
        """Return the order of every sample (B, L), or None for the plan's."""
        if self.order == "plan":
            return None
        L = generator.spec.length
        if self.order == "random":
            return noise.uniform(torch.arange(L), use=ORDER).expand(batch, L).argsort(-1)
        if given is None:
            raise UserError("order=known_first needs known codes; pass known=(positions, codes).")
        return torch.argsort((~given.mask_BL).long(), dim=-1, stable=True)


def known_runs(given: Known, groups: list[Tensor]) -> list[int]:
    """Return for each step how many single-code groups from it on are given in every sample."""
    row = torch.arange(len(given.codes), device=given.mask_BL.device)[:, None]
    whole = [bool(given.mask_BL[row, p].all()) for p in groups]
    runs = [0] * (len(groups) + 1)
    for step in range(len(groups) - 1, -1, -1):
        runs[step] = runs[step + 1] + 1 if whole[step] else 0
    return runs[:-1]


def in_position_order(drawn: list[Tensor], groups: tuple[tuple[int, ...], ...]) -> Tensor:
    """Put codes drawn group by group, each (B, n, ...), back into positions (B, L, ...)."""
    order = torch.tensor([p for group in groups for p in group], device=drawn[0].device)
    return torch.cat(drawn, dim=1)[:, order.argsort()]
