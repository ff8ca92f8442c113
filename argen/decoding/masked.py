"""Random subsets: each pass samples more of the positions still unknown (MAR, arXiv 2406.11838)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from argen.decoding.base import Decoder, DecodeResult
from argen.decoding.context import SamplingContext
from argen.decoding.group_order import ORDER
from argen.decoding.guidance import repeat_for_cfg
from argen.decoding.known import Known
from argen.decoding.local_order import local_order
from argen.errors import IncompatibleError, UserError
from argen.generators.base import AnyOrderGenerator, Generator
from argen.generators.conditioning import Cond
from argen.generators.maskgit.halton import halton_order
from argen.layers.noise import Noise
from argen.spec import CodeSpec


def cosine_counts(length: int, steps: int) -> list[int]:
    """Return how many of `length` codes each of `steps` passes samples: few first, many last.

    After pass s of S, floor(length cos(pi/2 s / S)) codes stay unknown, but every pass samples at
    least one.
    """
    if not 1 <= steps <= length:
        raise UserError(
            f"decoder `masked` samples at least one code a pass: steps={steps} must lie in "
            f"[1, {length}] for {length} unknown codes."
        )
    counts, left = [], length
    for step in range(1, steps):
        keep = math.floor(length * math.cos(math.pi / 2 * step / steps))
        keep = max(1, min(left - 1, keep))
        counts.append(left - keep)
        left = keep
    return [*counts, left]


class Masked(Decoder):
    """Sample random subsets of growing size, each given all codes sampled before it.

    Every sample has an order of its own. The guidance weight of a pass follows the share of codes
    that are known after it, so the linear schedule is 1 + (scale - 1) known / L; the last pass
    counts as one short of all, as published.

    Args:
        steps: number of passes; as many as there are unknown codes when None.
        order: `random`; `halton`, codes of one pass lie far apart, so that they depend little on
            one another (arXiv 2503.17076), and every sample starts elsewhere in that order;
            `local`, far apart too, but near known ones (LPD, arXiv 2507.01957).
    """

    exact = True
    takes_known = True

    def __init__(self, steps: int | None = None, *, order: str = "random") -> None:
        if steps is not None and steps < 1:
            raise UserError(f"steps={steps}: decoder `masked` needs at least one pass.")
        if order not in ("random", "halton", "local"):
            raise UserError(
                f"Unknown order {order!r} of decoder `masked`; use random, halton or local."
            )
        self.steps, self.order = steps, order

    def check(self, generator: Generator) -> None:
        """Raise if the generator has a fixed order."""
        if not (generator.plan.any_order and isinstance(generator, AnyOrderGenerator)):
            raise IncompatibleError(
                f"decoder `masked` samples random subsets; {type(generator).__name__} has a fixed "
                "order: use decoder=sequential."
            )
        if self.order == "local" and len(generator.spec.segments) > 1:
            raise IncompatibleError(
                f"order=local needs codes of one grid, not {generator.spec.describe()}: use "
                "order=halton."
            )

    def sample(self, generator: Generator, cond: Cond, context: SamplingContext) -> DecodeResult:
        """Sample the codes of B = len(cond) images in `steps` passes.

        Every code sees the given ones. The observer is told the positions as (B, n), since they
        differ between samples.
        """
        assert isinstance(generator, AnyOrderGenerator)
        guidance, known, head = context.guidance, context.known, generator.head
        if guidance.interval >= 0:
            raise UserError("decoder `masked` guides every pass; leave guidance.interval at -1.")
        L, B = generator.spec.length, len(cond)
        rows, device = guidance.rows(generator, cond), next(generator.parameters()).device
        state = generator.start(rows)

        def both(x: Tensor) -> Tensor:
            return repeat_for_cfg(x, guidance.active)

        rank_BL = self._rank(generator.spec, context.noise).to(device).expand(B, L).clone()
        positions_parts, code_parts, given = [], [], 0
        if known is not None:
            full = Known.at(*known, spec=generator.spec, batch=B, device=device)
            positions = known[0].to(device).expand(B, -1)
            codes = full.codes[torch.arange(B, device=device)[:, None], positions]
            given = positions.shape[1]
            rank_BL.scatter_(1, positions, -1.0)  # they sort to the front
            generator.commit(state, both(codes), positions=both(positions))
            positions_parts.append(positions)
            code_parts.append(codes)
        order_BL = rank_BL.argsort(dim=-1)
        counts = cosine_counts(L - given, self.steps or L - given) if given < L else []
        if self.order == "local":
            local = local_order(generator.spec.grid, counts, rank_BL < 0, rank_BL.clamp(min=0))
            order_BL = torch.cat((order_BL[:, :given], local), dim=1)
        done = given
        for n in counts:
            positions = order_BL[:, done : done + n].sort(dim=-1).values  # B n
            done += n
            weight = guidance.at(min(done, L - 1) / L)
            outputs = generator.predict(state, positions=both(positions))
            codes = head.sample(
                outputs,
                guidance=weight,
                filters=context.filters,
                noise=context.noise,
                positions=positions,
            )
            generator.commit(state, both(codes), positions=both(positions))
            positions_parts.append(positions)
            code_parts.append(codes)
            if context.observer is not None:
                context.observer(positions, codes, head.guided(outputs, weight))
        where_BL, codes = torch.cat(positions_parts, dim=1), torch.cat(code_parts, dim=1)
        index = where_BL.argsort(dim=-1).view(B, L, *(1,) * (codes.ndim - 2))
        return DecodeResult(codes=codes.gather(1, index.expand_as(codes)), passes=len(counts))

    def _rank(self, spec: CodeSpec, noise: Noise) -> Tensor:
        """Return numbers in [0, 1) that order the positions, (B, L)."""
        if self.order != "halton":
            return noise.uniform(torch.arange(spec.length), use=ORDER)
        start_B1 = noise.uniform(torch.zeros(1, dtype=torch.long), use=ORDER)
        place_L = torch.tensor(halton_order(spec)).argsort().to(start_B1) / spec.length
        return (place_L + start_B1) % 1.0
