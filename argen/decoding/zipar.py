"""ZipAR (arXiv 2412.04062): rows of the grid side by side, each a few codes behind the last.

    pass 5, window 2      1 2 3 4 5 .       a row may start once the row above has `window` codes;
                          3 4 5 . . .       the number is the pass that samples the code
                          5 . . . . .

A code far to the left of the row above matters little, so that a row need not wait for the end of
the row above. Training-free, and not exact: the end of the row above is not seen.

Shapes: B samples, h w grid, n codes of one pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from argen.decoding.base import Decoder, DecodeResult
from argen.decoding.context import SamplingContext
from argen.decoding.guidance import repeat_for_cfg
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond
from argen.generators.heads.guidance import GuidanceStep
from argen.generators.next_token import NextToken, NextTokenState, mask_rows
from argen.layers.cache import Window
from argen.layers.masks import dense_mask


class ZipAR(Decoder):
    """Sample the next code of every open row in one pass: about w + (h - 1) window passes.

    Args:
        window: codes a row must have before the one below starts; the width of the grid makes it
            sequential decoding.
    """

    exact = False

    def __init__(self, window: int = 16) -> None:
        if window < 1:
            raise UserError(f"window={window}: a row needs at least one code of the row above.")
        self.window = window

    def check(self, generator: Generator) -> None:
        """Raise unless the generator samples one grid row by row."""
        raster = generator.plan.groups == tuple((i,) for i in range(generator.spec.length))
        one_grid = len(generator.spec.segments) == 1 and generator.spec.grid[0] > 1
        if not (isinstance(generator, NextToken) and raster and one_grid):
            fits = "masked" if generator.plan.any_order else "sequential"
            raise IncompatibleError(
                f"decoder `zipar` samples the rows of a grid side by side; "
                f"{type(generator).__name__} on {generator.spec.describe()} does not sample one "
                f"grid row by row: use decoder={fits}."
            )
        if self.window > generator.spec.grid[1]:
            raise UserError(
                f"window={self.window} is wider than the grid of {generator.spec.describe()}; use "
                f"at most {generator.spec.grid[1]}."
            )

    def sample(self, generator: Generator, cond: Cond, context: SamplingContext) -> DecodeResult:
        """Sample the codes of B = len(cond) images."""
        assert isinstance(generator, NextToken)
        guidance, head = context.guidance, generator.head
        if guidance.sub_tokens:
            raise UserError("decoder `zipar` takes one guidance weight, not one a sub-token.")
        rows, L = guidance.rows(generator, cond), generator.spec.length
        state = generator.start(rows)
        codes = state.codes[: len(cond)].clone()
        seen = torch.zeros(L, dtype=torch.bool, device=codes.device)
        passes = schedule(generator.spec.grid, self.window)
        for number, (sampled, sources, steps) in enumerate(passes):
            if number == 0:
                outputs = generator.predict(state)
            else:
                at = torch.tensor(steps, device=codes.device)
                seen[at] = True
                fed = repeat_for_cfg(codes[:, sources], guidance.active)
                outputs = predict_after(generator, state, fed, at, seen)[:, : len(sampled)]
            positions = torch.tensor(sampled, device=codes.device)
            step = guidance.step(sampled[0], L)
            weights = [guidance.weight(position, L) for position in sampled]
            if len(set(weights)) > 1:
                weight_n = torch.tensor(weights, dtype=torch.float32, device=codes.device)
                step = GuidanceStep(weight_n, guidance.projection)
            new = head.sample(
                outputs,
                guidance=step,
                filters=context.filters,
                noise=context.noise,
                positions=positions,
            )
            codes[:, positions] = new
            if context.observer is not None:
                context.observer(positions, new, head.guided(outputs, step))
        return DecodeResult(codes, passes=len(passes))


def schedule(grid: tuple[int, int], window: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Plan all passes.

    Args:
        grid: (h, w).
        window: codes a row must have before the one below starts.

    Returns:
        for each pass the positions it samples; and, for these and then for row ends that only enter
        the cache, the positions whose codes are fed and the steps they are fed as.
    """
    h, w = grid
    done, ended, passes = [0] * h, [False] * h, []
    while min(done) < w:
        sampled, sources, steps = [], [], []
        for row in range(h):
            if row and done[row - 1] < min(window, w):
                break
            if done[row] == w:
                continue
            position = row * w + done[row]
            sampled.append(position)
            steps.append(position - 1)
            # Until the row above ends, its newest code stands in for its last one.
            newest = (row - 1) * w + done[row - 1] - 1
            sources.append(newest if done[row] == 0 else position - 1)
            if row and done[row] == 0:
                ended[row - 1] = done[row - 1] == w
        for row in range(h - 1):
            if done[row] == w and done[row + 1] and not ended[row]:
                ended[row] = True
                sources.append((row + 1) * w - 1)
                steps.append((row + 1) * w - 1)
        for position in sampled:
            done[position // w] += 1
        passes.append((sampled, sources, steps))
    return passes


def predict_after(
    generator: NextToken, state: NextTokenState, codes: Tensor, steps: Tensor, seen: Tensor
) -> Tensor:
    """Return the outputs (R, n, ...) for the steps that follow scattered ones.

    Every step sees the ones before it that have been fed; what is fed stays in the cache at its
    own place, and feeding a step again replaces it.

    Args:
        generator: any next-token generator.
        state: after a first `predict`, which feeds the prefix.
        codes: codes (R, n, ...) to feed.
        steps: their steps (n,).
        seen: which steps have been fed so far or are now, boolean (L,).
    """
    T, L = generator.prefix_length, generator.spec.length
    slots, reach = T + steps, T + L - 1
    keys = torch.arange(reach, device=codes.device)
    mask = dense_mask(generator._pattern(state.cond), slots, keys, rows=mask_rows(state.cond))
    state.hidden = generator._run(
        generator._embed(codes, steps, state.order),
        slots,
        state.cond,
        mask=mask & torch.cat((seen.new_ones(T), seen[: L - 1])),
        cache=state.cache,
        window=Window(start=0, n=len(steps), reach=reach, at=slots),
    )
    return generator.head(state.hidden)
