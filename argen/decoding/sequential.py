"""The plain strategy: one pass a group, in the generator's own order or in another."""

from __future__ import annotations

from argen.decoding.base import Decoder, DecodeResult
from argen.decoding.compiled import CompiledSequential
from argen.decoding.completion import complete
from argen.decoding.context import SamplingContext
from argen.decoding.group_order import (
    check_fixed_order,
    check_order,
    in_position_order,
    ordered_groups,
)
from argen.decoding.guidance import repeat_for_cfg
from argen.generators.base import Generator
from argen.generators.conditioning import Cond

__all__ = ["Sequential", "in_position_order"]


class Sequential(Decoder):
    """Sample group after group, each given all groups before it, with a key/value cache.

    Codes that are given beforehand take the place of sampled ones; codes sampled before a given
    one do not see it.

    Args:
        order: `plan` follows the generator; `random` samples an order for every image and
            `known_first` puts the codes that are given first, so that all others see them. These
            two need a generator trained on permuted orders (RAR).
        compile: run calls without given codes as `CompiledSequential`: for next-token generators,
            fast after a start of a minute.
    """

    exact = True
    takes_known = True

    def __init__(self, order: str = "plan", *, compile: bool = False) -> None:
        check_order(order)
        self.order = order
        self.compiled = CompiledSequential(order) if compile else None

    def check(self, generator: Generator) -> None:
        """Raise if the generator has no order, or another one than asked for."""
        check_fixed_order(generator, self.order)
        if self.compiled is not None:
            self.compiled.check(generator)

    def max_rows(self, generator: Generator, batch_size: int) -> int | None:
        """Return those of the largest group."""
        return 2 * batch_size * max(len(group) for group in generator.plan.groups)

    def sample(self, generator: Generator, cond: Cond, context: SamplingContext) -> DecodeResult:
        """Sample the codes of B = len(cond) images in at most len(plan.groups) passes."""
        if self.compiled is not None and context.known is None:
            return self.compiled(generator, cond, context)
        if context.known is not None:
            return complete(generator, cond, context, self.order)
        groups, options = ordered_groups(generator, context, self.order, batch=len(cond))
        state = generator.start(context.guidance.rows(generator, cond), **options)
        sampled = []
        for step, positions in enumerate(groups):
            outputs = generator.predict(state)
            guidance = context.guidance.step(step, len(groups))
            codes = generator.head.sample(
                outputs,
                guidance=guidance,
                filters=context.filters,
                noise=context.noise,
                positions=positions,
            )
            generator.commit(state, repeat_for_cfg(codes, context.guidance.active))
            sampled.append(codes)
            if context.observer is not None:
                context.observer(positions, codes, generator.head.guided(outputs, guidance))
        return DecodeResult(in_position_order(sampled, groups), passes=len(groups))
