"""The plain strategy for next-token generators, compiled, and on a GPU replayed as a graph.

The loop's state lives in buffers that stay where they are, so that the recording of one batch
serves all that follow. Nothing is read back from the device between two codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from argen.decoding.base import Decoder, DecodeResult
from argen.decoding.context import SamplingContext
from argen.decoding.group_order import (
    check_fixed_order,
    check_order,
    in_position_order,
    ordered_groups,
)
from argen.decoding.guidance import repeat_for_cfg
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond
from argen.generators.heads.guidance import GuidanceStep
from argen.generators.next_token import NextToken, NextTokenState, mask_rows
from argen.layers.cache import Window
from argen.layers.masks import dense_mask
from argen.layers.noise import SeededNoise
from argen.layers.steps import positions_of

WARM_UP = 3  # passes before recording, as torch.cuda.graph asks for


class CompiledSequential(Decoder):
    """`Sequential` without given codes, with a compiled pass; on a GPU a CUDA graph a code.

    Worth its start (a minute) for many images; rounding, and so an image now and then, differs
    from the plain loop's. Chosen by `decoder=sequential decoder.compile=true`.

    Args:
        order: `plan` or `random`, see `Sequential`.
    """

    exact = True

    def __init__(self, order: str = "plan") -> None:
        check_order(order)
        self.order = order
        self._loops: dict[Any, FixedLoop] = {}

    def check(self, generator: Generator) -> None:
        """Raise unless the generator samples one code a pass in the order asked for."""
        check_fixed_order(generator, self.order)
        if not isinstance(generator, NextToken):
            raise IncompatibleError(
                f"compile=true of decoder `sequential` is for generators that sample one code a "
                f"pass; {type(generator).__name__} does not: leave it out."
            )

    def sample(self, generator: Generator, cond: Cond, context: SamplingContext) -> DecodeResult:
        """Sample the codes of B = len(cond) images, one code a pass."""
        assert isinstance(generator, NextToken)
        steps, head = generator.spec.length, generator.head
        if context.guidance.sub_tokens:
            raise UserError(
                "compile=true of decoder `sequential` takes one guidance weight a step, not one a "
                "sub-token; leave it out."
            )
        groups, options = ordered_groups(generator, context, self.order, batch=len(cond))
        rows = context.guidance.rows(generator, cond)
        loop = self._loop(generator, rows, context, options)
        outputs, guidance = generator.predict(loop.state), context.guidance.step(0, steps)
        codes = head.sample(
            outputs,
            guidance=guidance,
            filters=context.filters,
            noise=context.noise,
            positions=groups[0],
        )
        generator.commit(loop.state, repeat_for_cfg(codes, context.guidance.active))
        if context.observer is not None:
            context.observer(groups[0], codes, head.guided(outputs, guidance))
        sampled = [codes]
        if steps > 1:
            loop.begin()
        for _ in range(1, steps):
            positions, codes, guided = loop.step()
            sampled.append(codes.clone())
            if context.observer is not None:
                context.observer(positions, sampled[-1], guided)
        return DecodeResult(in_position_order(sampled, groups), passes=steps)

    def _loop(
        self, generator: NextToken, rows: Cond, context: SamplingContext, options: dict[str, Any]
    ) -> FixedLoop:
        """Return the loop of a batch shape, made anew or restarted."""
        noise, order = context.noise, options.get("order")
        if not isinstance(noise, SeededNoise):
            raise UserError(
                "compile=true of decoder `sequential` makes its own random numbers and cannot "
                "take recorded ones; leave it out."
            )
        shapes = [None if t is None else t.shape for t in (*rows.tensors(), order)]
        key = (id(generator), str(shapes), repr(context.guidance), repr(context.filters))
        if key in self._loops:
            self._loops[key].restart(rows, order, noise)
        else:
            state = generator.start(rows.map(torch.clone), **options)
            self._loops[key] = FixedLoop(generator, state, context, noise)
        return self._loops[key]


class FixedLoop:
    """All steps after the first of one batch shape.

    Args:
        generator: samples one code a pass.
        state: fresh, of R rows; it is kept and restarted for later batches.
        context: guidance and filters.
        noise: keyed random numbers, whose keys later batches replace.
    """

    def __init__(
        self,
        generator: NextToken,
        state: NextTokenState,
        context: SamplingContext,
        noise: SeededNoise,
    ) -> None:
        self.generator, self.state, self.noise = generator, state, noise
        self.filters, self.guided = context.filters, context.guidance.active
        device, steps = state.codes.device, generator.spec.length
        self.at = torch.zeros(1, dtype=torch.long, device=device)
        self.weight_L: Tensor | None = None
        self.projection = context.guidance.projection
        if self.guided:
            weights = [context.guidance.weight(step, steps) for step in range(steps)]
            self.weight_L = torch.tensor(weights, device=device)
        self.predict: Callable[..., Tensor] = torch.compile(predict_at, dynamic=False)
        self.graph: Any = None
        self.out: tuple[Tensor, Tensor, Tensor] | None = None

    def restart(self, cond: Cond, order: Tensor | None, noise: SeededNoise) -> NextTokenState:
        """Take the conditions, order and noise of another batch of the same shape."""
        for kept, new in zip(self.state.cond.tensors(), cond.tensors()):
            if kept is not None and new is not None:
                kept.copy_(new)
        if self.state.order is not None and order is not None:
            self.state.order.copy_(order)
        self.noise.keys_B.copy_(noise.keys_B)
        self.state.length = self.state.longest = 0
        self.state.modulations.kept = None
        return self.state

    def begin(self) -> None:
        """Start after the first code; on a GPU, record a step the first time."""
        if self.state.codes.device.type == "cuda" and self.graph is None:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self.at.zero_()
                    self._step()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.out = self._step()
        self.at.zero_()

    def step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sample one code; returns positions, codes and guided outputs, valid until the next."""
        if self.graph is None:
            return self._step()
        self.graph.replay()
        assert self.out is not None
        return self.out

    def _step(self) -> tuple[Tensor, Tensor, Tensor]:
        head, following = self.generator.head, self.at + 1
        outputs = self.predict(self.generator, self.state, self.at)
        positions = positions_of(following, self.state.order)
        if positions.ndim == 2 and self.guided:
            positions = positions.chunk(2)[0]
        guidance = None
        if self.weight_L is not None:
            guidance = GuidanceStep(self.weight_L[following], self.projection)
        codes = head.sample(
            outputs,
            guidance=guidance,
            filters=self.filters,
            noise=self.noise,
            positions=positions,
        )
        self.state.codes.index_copy_(1, following, repeat_for_cfg(codes, self.guided))
        self.at += 1
        return positions, codes, head.guided(outputs, guidance)


def predict_at(generator: NextToken, state: NextTokenState, at: Tensor) -> Tensor:
    """Return the outputs (R, 1, ...) for the step after `at`; the same as `predict` gives.

    Args:
        generator: the network.
        state: from `start`, with the codes of all steps up to `at` in place and all but the last
            of them fed. Keys and values of step `at` are written, nothing else changes.
        at: the last step with a code, long (1,).
    """
    slots, cache = generator.prefix_length + at, state.cache
    window = Window(start=0, n=1, reach=cache.slots, at=slots)
    keys = torch.arange(cache.slots, device=at.device)
    mask = dense_mask(generator._pattern(state.cond), slots, keys, rows=mask_rows(state.cond))
    x_R1D = generator._embed(state.codes.index_select(1, at), at, state.order)
    hidden = generator._run(x_R1D, slots, state.cond, mask=mask, cache=cache, window=window)
    return generator.head(hidden)
