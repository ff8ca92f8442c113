"""The plain strategy: one pass a group, in the generator's own order."""

from __future__ import annotations

import torch

from argen.decoding.base import Decoder, DecodeResult, Observer
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.errors import IncompatibleError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond
from argen.layers.noise import Noise


class Sequential(Decoder):
    """Draw group after group, each given all groups before it, with a key/value cache."""

    exact = True

    def check(self, generator: Generator) -> None:
        """Raise if the generator has no order of its own."""
        if generator.plan.any_order:
            raise IncompatibleError(
                f"decoder `sequential` follows a fixed order; {type(generator).__name__} draws "
                "random subsets: use decoder=masked."
            )

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
        """Draw the codes of B = len(cond) samples in len(plan.groups) passes."""
        self.check(generator)
        state = generator.start(guidance.rows(generator, cond))
        groups, drawn = generator.plan.groups, []
        for step, group in enumerate(groups):
            params = generator.predict(state)
            weight = guidance.weight(step, len(groups))
            positions = torch.tensor(group, device=params.device)
            codes = generator.head.sample(
                params, weight=weight, filters=filters, noise=noise, positions=positions
            )
            generator.commit(state, codes if weight is None else torch.cat((codes, codes)))
            drawn.append(codes)
            if observer is not None:
                observer(positions, codes, generator.head.guided(params, weight))
        return DecodeResult(codes=in_position_order(drawn, groups), passes=len(groups))


def in_position_order(
    drawn: list[torch.Tensor], groups: tuple[tuple[int, ...], ...]
) -> torch.Tensor:
    """Put codes drawn group by group, each (B, n, ...), back into positions (B, L, ...)."""
    order = torch.tensor([p for group in groups for p in group], device=drawn[0].device)
    return torch.cat(drawn, dim=1)[:, order.argsort()]
