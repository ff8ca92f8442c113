"""A generator that is a table: the distribution of every code under every past, written out.

Its joint distribution can be summed exactly, which is what proofs of decoding strategies need.

Shapes: R rows, B samples, L codes, G sub-tokens, V vocabulary, n positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import IncompatibleError
from argen.generators.base import Generator, LossOutput
from argen.generators.conditioning import ClassConditioner, Cond
from argen.generators.heads.base import Filter, Head
from argen.generators.heads.guidance import GuidanceStep, guide
from argen.generators.heads.sampling import sample_categorical
from argen.generators.plan import Plan
from argen.layers.noise import Noise
from argen.spec import CodeSpec, Segment


class TableHead(Head):
    """Looks up the distribution of a sub-token.

    `outputs` (R, n, 3) hold the class, the step and the number of the past.

    Args:
        tables: for each flattened sub-token i of a sequence, logits (classes, V ** i, V).
        subs: sub-tokens a position G.
    """

    def __init__(self, tables: list[Tensor], subs: int) -> None:
        super().__init__()
        self.tables = nn.ParameterList(nn.Parameter(table) for table in tables)
        self.subs, self.vocab_size = subs, tables[0].shape[-1]

    def forward(self, hidden_BnD: Tensor) -> Tensor:
        """Pass the numbers on; nothing is computed before the lookup."""
        return hidden_BnD

    @property
    def id_sizes(self) -> tuple[int, ...]:
        """Vocabulary size of each sub-token."""
        return (self.vocab_size,) * self.subs

    def to_ids(self, codes: Tensor) -> Tensor:
        """Return the sub-tokens (..., G) of codes."""
        return codes if self.subs > 1 else codes[..., None]

    def to_codes(self, ids: Tensor) -> Tensor:
        """Return the codes of sub-tokens (..., G)."""
        return ids if self.subs > 1 else ids[..., 0]

    def conditional(self, outputs: Tensor, codes: Tensor) -> Tensor:
        """Return logits (R, n, G, V) of each sub-token given the past and `codes` before it."""
        codes = codes if codes.ndim == 3 else codes[..., None]
        past, logits = outputs[..., 2], []
        for g in range(self.subs):
            level = outputs[..., 1] * self.subs + g  # R n
            rows = torch.zeros(*past.shape, self.vocab_size, dtype=self.tables[0].dtype)
            for i in level.unique().tolist():
                if i < len(self.tables):
                    at = level == i
                    rows[at] = self.tables[i][outputs[..., 0][at], past[at]]
            logits.append(rows)
            past = past * self.vocab_size + codes[..., g]
        return torch.stack(logits, dim=2)

    def loss(self, outputs: Tensor, target: Tensor, **options: Any) -> Tensor:
        """Return the cross entropy in nats, (R, n)."""
        logits = self.conditional(outputs, target)
        nll = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none")
        return nll.view(*logits.shape[:3]).sum(-1)

    def sample(
        self,
        outputs: Tensor,
        *,
        guidance: GuidanceStep | None,
        filters: Filter,
        noise: Noise,
        positions: Tensor,
    ) -> Tensor:
        """Sample ids (B, n), or (B, n, G)."""
        R, n = outputs.shape[:2]
        codes = torch.zeros(R, n, self.subs, dtype=torch.long)
        uniform = noise.uniform(positions, (self.subs,)).expand(-1, n, -1)
        for g in range(self.subs):
            logits = filters(guide(self.conditional(outputs, codes)[:, :, g], guidance))
            sampled = sample_categorical(logits, uniform[..., g].expand(logits.shape[:-1]))
            codes[..., g] = sampled.repeat(R // sampled.shape[0], 1)
        codes = codes[: R if guidance is None else R // 2]
        return codes if self.subs > 1 else codes[..., 0]


@dataclass
class TableState:
    """Committed codes of R rows.

    Attributes:
        label_R: class of each row.
        codes_RLG: the codes.
        length_R: how many are committed.
    """

    label_R: Tensor
    codes_RLG: Tensor
    length_R: Tensor

    def rows(self, index: Tensor) -> TableState:
        """Return a copy of some rows."""
        return TableState(self.label_R[index], self.codes_RLG[index], self.length_R[index])


class Table(Generator):
    """Samples code after code from listed distributions.

    Args:
        tables: for each flattened sub-token i of a sequence, logits (classes, V ** i, V); the last
            class is the null class where there is more than one.
        subs: sub-tokens a position G.
    """

    head: TableHead

    def __init__(self, tables: list[Tensor], *, subs: int = 1) -> None:
        super().__init__()
        classes, _, vocab = tables[0].shape
        for i, table in enumerate(tables):
            if table.shape != (classes, vocab**i, vocab):
                raise IncompatibleError(
                    f"Table {i} has shape {tuple(table.shape)}; it must list the distributions "
                    f"of every class and past, {(classes, vocab**i, vocab)}."
                )
        if len(tables) % subs:
            raise IncompatibleError(f"{len(tables)} tables do not make positions of {subs} ids.")
        shape = (1, len(tables) // subs)
        self.spec = CodeSpec("discrete", (Segment(shape, vocab_sizes=(vocab,) * subs),))
        self.plan = Plan.raster(self.spec, trees=True)
        self.head = TableHead(tables, subs)
        guided = classes > 1
        self.conditioner = ClassConditioner(classes - int(guided), 1, drop_rate=float(guided))
        self.conditioner.requires_grad_(False).table.weight.copy_(torch.arange(classes)[:, None])

    @classmethod
    def random(
        cls, *, length: int, vocab: int, classes: int = 1, subs: int = 1, seed: int = 0
    ) -> Table:
        """Make a float64 table of normal logits, so that distributions are far from uniform."""
        source = torch.Generator().manual_seed(seed)
        shapes = [(classes, vocab**i, vocab) for i in range(length * subs)]
        tables = [torch.randn(s, generator=source, dtype=torch.float64) * 1.5 for s in shapes]
        return cls(tables, subs=subs)

    def numbered(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return the class, step and past (B, L, 3) of every position of codes."""
        symbols, past = self._symbols(codes), torch.zeros(len(codes), dtype=torch.long)
        pasts = []
        for symbol_B in symbols.unbind(1):
            pasts.append(past)
            past = past * self.head.vocab_size**self.head.subs + symbol_B
        past_BL = torch.stack(pasts, dim=1)
        steps = torch.arange(past_BL.shape[1]).expand_as(past_BL)
        label_BL = _labels(cond)[:, None].expand_as(past_BL)
        return torch.stack((label_BL, steps, past_BL), dim=-1)

    def loss(self, codes: Tensor, cond: Cond, *, noise: Noise | None = None) -> LossOutput:
        """Return the mean cross entropy in nats."""
        nll_BL = self.head.loss(self.numbered(codes, cond), codes)
        return LossOutput(nll_BL.mean(), nll=nll_BL)

    def score(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return logits (B, L, V), or (B, L, G, V), of every position given the ones before it."""
        logits = self.head.conditional(self.numbered(codes, cond), codes)
        return logits if self.head.subs > 1 else logits[:, :, 0]

    def start(self, cond: Cond, *, longest_draft: int = 0) -> TableState:
        """Return a state of no codes."""
        R = len(cond)
        codes = torch.zeros(R, self.spec.length, self.head.subs, dtype=torch.long)
        return TableState(_labels(cond), codes, torch.zeros(R, dtype=torch.long))

    def predict(
        self, state: TableState, draft: Tensor | None = None, *, parents: Tensor | None = None
    ) -> Tensor:
        """Return the class, step and past of the next k + 1 positions, (R, k + 1, 3).

        With `parents`, (k,) or (R, k), of what follows the last code and each node of a tree.
        """
        k = 0 if draft is None else draft.shape[1]
        R, size = len(state.label_R), self.head.vocab_size**self.head.subs
        symbols = self._symbols(torch.zeros(R, 0, self.head.subs) if draft is None else draft)
        known = torch.arange(self.spec.length) < state.length_R[:, None]
        past = torch.zeros_like(state.label_R)
        for s, symbol_R in enumerate(self._symbols(state.codes_RLG).unbind(1)):
            past = torch.where(known[:, s], past * size + symbol_R, past)
        pasts, steps = [past], [state.length_R]
        above = torch.arange(k).expand(R, k) if parents is None else parents.expand(R, k)
        for node in range(k):
            row = torch.arange(R)
            pasts.append(torch.stack(pasts, 1)[row, above[:, node]] * size + symbols[:, node])
            steps.append(torch.stack(steps, 1)[row, above[:, node]] + 1)
        label_Rn = state.label_R[:, None].expand(R, k + 1)
        return torch.stack((label_Rn, torch.stack(steps, 1), torch.stack(pasts, 1)), dim=-1)

    def commit(
        self,
        state: TableState,
        codes: Tensor,
        counts: Tensor | None = None,
        *,
        path: Tensor | None = None,
    ) -> None:
        """Fix the next codes (R, n) or (R, n, G), or the first `counts` of them in each row."""
        codes = codes if codes.ndim == 3 else codes[..., None]
        counts = torch.full_like(state.length_R, codes.shape[1]) if counts is None else counts
        step_RL = torch.arange(self.spec.length) - state.length_R[:, None]
        new = ((step_RL >= 0) & (step_RL < counts[:, None]))[..., None]
        index = step_RL.clamp(0, codes.shape[1] - 1)[..., None].expand_as(state.codes_RLG)
        state.codes_RLG = torch.where(new, codes.gather(1, index), state.codes_RLG)
        state.length_R = (state.length_R + counts).clamp(max=self.spec.length)

    def _symbols(self, codes: Tensor) -> Tensor:
        """Return each position's sub-tokens as one number, (R, n)."""
        weight = self.head.vocab_size ** torch.arange(self.head.subs - 1, -1, -1)
        return (self.head.to_ids(codes) if codes.ndim == 2 else codes).long() @ weight


def _labels(cond: Cond) -> Tensor:
    assert cond.vector_BD is not None
    return cond.vector_BD[:, 0].round().long()
