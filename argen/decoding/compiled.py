"""The plain strategy's loop for next-token generators, compiled, and on a GPU replayed as a graph.

The loop's state lives in buffers that stay where they are, so that the recording of one batch
serves all that follow. Nothing is read back from the device between two codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from argen.decoding.filters import Filters
from argen.generators.conditioning import Cond
from argen.generators.next_token import NextToken, NextTokenState, mask_rows
from argen.layers.cache import Window
from argen.layers.masks import dense_mask
from argen.layers.noise import Noise, SeededNoise
from argen.layers.steps import positions_of

WARM_UP = 3  # passes before recording, as torch.cuda.graph asks for


class FixedLoop:
    """All steps after the first of one batch shape.

    Args:
        generator: draws one code a pass.
        state: fresh, of R rows; it is kept and restarted for later batches.
        copies: rows a sample, 2 under guidance.
        weights: guidance weight of each step; empty when not guided.
        filters: cut the logits.
        noise: keyed draws, as `SeededNoise` makes them.
    """

    def __init__(
        self,
        generator: NextToken,
        state: NextTokenState,
        *,
        copies: int,
        weights: list[float],
        filters: Filters,
        noise: SeededNoise,
    ) -> None:
        self.generator, self.state, self.copies = generator, state, copies
        self.filters, self.noise = filters, noise
        device = state.codes.device
        self.at = torch.zeros(1, dtype=torch.long, device=device)
        self.weight_L = torch.tensor(weights, device=device) if weights else None
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
        """Draw one code; returns positions, codes and guided parameters, valid until the next."""
        if self.graph is None:
            return self._step()
        self.graph.replay()
        assert self.out is not None
        return self.out

    def _step(self) -> tuple[Tensor, Tensor, Tensor]:
        head, following = self.generator.head, self.at + 1
        params = self.predict(self.generator, self.state, self.at)
        positions = positions_of(following, self.state.order)
        if positions.ndim == 2:
            positions = positions[: len(positions) // self.copies]
        weight = None if self.weight_L is None else self.weight_L[following]
        codes = head.sample(
            params, weight=weight, filters=self.filters, noise=self.noise, positions=positions
        )
        rows = codes.repeat(self.copies, *(1,) * (codes.ndim - 1))
        self.state.codes.index_copy_(1, following, rows)
        self.at += 1
        return positions, codes, head.guided(params, weight)


def predict_at(generator: NextToken, state: NextTokenState, at: Tensor) -> Tensor:
    """Return the parameters (R, 1, ...) of the step after `at`; the same as `predict` gives.

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


def unfit(weights: list[Any], noise: Noise) -> str | None:
    """Return why the loop cannot follow these weights or draws, or None when it can."""
    if any(type(weight) is not float for weight in weights):
        return "it takes one guidance weight a step, and no projected guidance"
    if not isinstance(noise, SeededNoise):
        return "it makes its own draws and cannot take recorded ones"
    return None
