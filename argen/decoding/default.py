"""The strategy a generator is sampled with when nobody names one."""

from __future__ import annotations

from argen.decoding.base import Decoder
from argen.decoding.confidence import Confidence
from argen.decoding.masked import Masked
from argen.decoding.sequential import Sequential
from argen.errors import IncompatibleError
from argen.generators.base import Generator


def default_decoder(generator: Generator, *, known: bool = False) -> Decoder:
    """Return the plainest strategy that fits: `sequential`, `confidence` or `masked`.

    Args:
        generator: what it shall drive.
        known: codes are given beforehand; where the order is free they come first.

    Raises:
        IncompatibleError: with the last refusal, if none does.
    """
    if known and generator.plan.permutable:
        return Sequential("known_first")
    strategies: tuple[Decoder, ...] = (Sequential(), Confidence(), Masked())
    for strategy in strategies[:-1]:
        try:
            strategy.check(generator)
        except IncompatibleError:
            continue
        return strategy
    strategies[-1].check(generator)
    return strategies[-1]
