"""The exact distribution of a speculative strategy: every outcome of every decision, summed.

Where a generator is small enough, the joint distribution of the finished codes and the mean number
of passes are sums over all outcomes. The strategy's own code runs; only its `Decisions` are
replaced, so what is proved is what samples. Runs that have come to the same point are merged after
each pass.

Shapes: N runs followed at once, n slots, C outcomes of a decision, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.speculative.decisions import Decisions
from argen.decoding.speculative.lookahead import LookAhead
from argen.decoding.speculative.state import DecodeState
from argen.generators.base import Generator
from argen.generators.conditioning import Cond

Result = TypeVar("Result")


@dataclass
class Decision:
    """A decision: probabilities (N, n, C) of its outcomes, and where it is made (N, n)."""

    probs: Tensor
    where: Tensor


class Scripted(Decisions):
    """Answers decisions with the outcomes it was given, and notes the first one beyond them.

    Args:
        script: outcomes (N, n) of the first decisions of a pass.
    """

    def __init__(self, script: list[Tensor]) -> None:
        self.script, self.asked = script, 0
        self.pending: Decision | None = None

    def decide(self, probs: Tensor, where: Tensor) -> Tensor:
        """Return the scripted outcome, or any (zero) behind the script."""
        self.asked += 1
        if self.asked <= len(self.script):
            return self.script[self.asked - 1]
        if self.pending is None:
            self.pending = Decision(probs, where)
        return torch.zeros(probs.shape[:2], dtype=torch.long)

    def accept(
        self, probability: Tensor, positions: Tensor, *, use: int, where: Tensor, chain: bool
    ) -> Tensor:
        """Decide how many are kept: in the whole chain, or of each position's sub-tokens."""
        N, n, G = probability.shape
        probability = probability * where[..., None]
        runs = probability.reshape(N, 1, n * G) if chain else probability  # N s length
        reach = torch.cat((torch.ones_like(runs[..., :1]), runs.cumprod(-1)), dim=-1)
        stop = torch.cat((1 - runs, torch.ones_like(runs[..., :1])), dim=-1)
        decided = where.any(1, keepdim=True) if chain else where
        kept = self.decide(reach * stop, decided)[..., None]
        return (torch.arange(runs.shape[-1]) < kept).reshape(N, n, G) & where[..., None]

    def choose(
        self,
        probs: Tensor,
        positions: Tensor,
        *,
        use: int,
        where: Tensor,
        sub: int = 0,
    ) -> Tensor:
        """Decide on one of V tokens."""
        return self.decide(probs, where)

    def gumbel_max(
        self, probs: Tensor, positions: Tensor, *, where: Tensor, sub: int = 0
    ) -> Tensor:
        """Refuse: shared noise ties decisions of different passes together."""
        raise NotImplementedError(
            "Enumerating Gumbel-coupled samples needs their joint distribution."
        )

    def guess(
        self, vocab_sizes: tuple[int, ...], positions: Tensor, *, use: int, where: Tensor
    ) -> Tensor:
        """Decide on each sub-token of a blind guess."""
        parts = []
        for size in vocab_sizes:
            probs = torch.full((*positions.shape, size), 1.0 / size, dtype=torch.float64)
            parts.append(self.decide(probs, where))
        return torch.stack(parts, dim=-1)


ScriptMaker = Callable[[DecodeState, list[Tensor]], Scripted]


@dataclass
class ExactDistribution:
    """What enumeration finds.

    Attributes:
        joint: probability of every image, V ** (L G) numbers, first code slowest.
        passes: mean number of network passes.
        runs: how many distinct runs were followed.
    """

    joint: Tensor
    passes: float
    runs: int


def enumerate_decoder(
    decoder: LookAhead,
    generator: Generator,
    cond: Cond,
    *,
    guidance: Guidance,
    filters: Filters,
    batch: int | None = None,
    scripted: ScriptMaker = lambda run, script: Scripted(script),
) -> ExactDistribution:
    """Return the exact distribution of a strategy on a small generator.

    Args:
        decoder: the strategy.
        generator: one whose state can be copied, such as `argen.testing.table.Table`.
        cond: the condition of one sample.
        guidance: as in a call.
        filters: as in a call.
        batch: runs that share a call of the strategy; all at once when None.
        scripted: makes the stand-in for the decisions of a pass.
    """
    decoder.check(generator)
    L, sizes = generator.spec.length, generator.head.id_sizes
    G, V = len(sizes), max(sizes)
    run = decoder.begin(generator, cond, guidance=guidance, filters=filters)
    weight = torch.ones(len(cond), dtype=torch.float64) / len(cond)
    joint = torch.zeros(V ** (L * G), dtype=torch.float64)
    place = V ** torch.arange(L * G - 1, -1, -1)
    passes, runs = 0.0, 0
    waiting = [(run, weight)]
    while waiting:
        passes += sum(float(weight.sum()) for _, weight in waiting)
        runs += sum(len(weight) for _, weight in waiting)
        ended = [
            part
            for run, weight in waiting
            for part in _one_pass(decoder, generator, run, weight, batch, scripted)
        ]
        waiting = []
        for run, weight in ended:
            done = run.length_B >= L
            symbols = run.codes[:, :L][:, run.order_L.argsort()].reshape(len(weight), -1)
            joint.index_add_(0, (symbols * place).sum(-1)[done], weight[done])
            if not bool(done.all()):
                waiting.append(_merged(run, weight, (~done).nonzero()[:, 0]))
    return ExactDistribution(joint, passes, runs)


def _one_pass(
    decoder: LookAhead,
    generator: Generator,
    run: DecodeState,
    weight: Tensor,
    batch: int | None,
    scripted: ScriptMaker,
) -> list[tuple[DecodeState, Tensor]]:
    """Follow every outcome of one pass; returns the runs after it and their probabilities."""

    def once(origin: Tensor, script: list[Tensor]) -> tuple[DecodeState, Scripted]:
        rows = run.rows(origin)
        decisions = scripted(rows, script)
        with torch.inference_mode():
            return decoder.step(generator, rows, decisions)[0], decisions

    return follow(once, weight, batch=batch)


def follow(
    once: Callable[[Tensor, list[Tensor]], tuple[Result, Scripted]],
    weight: Tensor,
    *,
    batch: int | None = None,
) -> list[tuple[Result, Tensor]]:
    """Follow every outcome of a piece of code that decides through `Decisions`.

    Args:
        once: runs it for copies of runs, given which run each is a copy of and the script of their
            decisions; returns the result and the stand-in it drew from.
        weight: probabilities (N,) of the runs.
        batch: copies that share a call; all when None.

    Returns:
        results of each call, with the probabilities of their copies.
    """
    script: list[Tensor] = []
    origin = torch.arange(len(weight))
    while True:
        results, pending = [], []
        for rows in torch.arange(len(weight)).split(batch or len(weight)):
            result, decisions = once(origin[rows], [answer[rows] for answer in script])
            results.append((result, weight[rows]))
            if decisions.pending is not None:
                pending.append(decisions.pending)
        if not pending:
            return results
        probs = torch.cat([decision.probs for decision in pending])
        where = torch.cat([decision.where for decision in pending])
        parent, outcome, weight = _branch(Decision(probs, where), weight)
        origin, script = origin[parent], [answer[parent] for answer in script] + [outcome]


def _branch(decision: Decision, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split every run into the outcomes of a decision, slot by slot."""
    N, n, C = decision.probs.shape
    parent, outcome = torch.arange(N), torch.zeros(N, 0, dtype=torch.long)
    no_choice = torch.nn.functional.one_hot(torch.tensor(0), C).double()
    for slot in range(n):
        where = decision.where[parent, slot][:, None]
        probs = torch.where(where, decision.probs[parent, slot].double(), no_choice)
        run, choice = (probs > 0).nonzero(as_tuple=True)
        outcome = torch.cat((outcome[run], choice[:, None]), dim=1)
        weight, parent = weight[run] * probs[run, choice], parent[run]
    return parent, outcome, weight


def _merged(run: DecodeState, weight: Tensor, rows: Tensor) -> tuple[DecodeState, Tensor]:
    """Pick rows and add up the probabilities of those that stand at the same point."""
    run, weight = run.rows(rows), weight[rows]
    final = torch.arange(run.codes.shape[1]) < run.length_B[:, None]
    parts = [run.length_B[:, None], run.width_B[:, None], (run.codes * final[..., None]).flatten(1)]
    key = torch.cat([part.double() for part in parts] + [run.drafter_state.key().double()], dim=1)
    _, group = key.unique(dim=0, return_inverse=True)
    total = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add(0, group, weight)
    first = torch.zeros_like(total, dtype=torch.long).scatter(0, group, torch.arange(len(weight)))
    run = run.rows(first)
    run.k = int(run.width_B.max())
    return run, total
