"""MaskGIT: fill in masked codes, looking both ways (arXiv 2202.04200).

The network sees condition tokens and codes, unknown ones replaced by a mask token, and predicts
every code at once; the decoder decides which predictions to keep. Everything but the network is
here; `bert.py` and `uvit.py` beside it have those of TiTok's released models.

Shapes: B batch, R rows (B, doubled under guidance), T condition tokens, L codes, S = T + L,
D model width, V vocabulary, n positions of a group.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import IncompatibleError, UserError
from argen.generators.base import AnyOrderGenerator, LossOutput
from argen.generators.conditioning import Cond, Conditioner
from argen.generators.heads.categorical import CategoricalHead
from argen.generators.maskgit.halton import halton_order
from argen.generators.maskgit.mask_schedule import check_schedule, group_sizes, unknown_share
from argen.generators.plan import Plan
from argen.layers.noise import Noise, SeededNoise
from argen.layers.steps import take
from argen.spec import CodeSpec

SHARE, ORDER = 0, 1  # the uses of the random numbers of the loss


STRATEGIES = "decoder=confidence or decoder=masked"  # which do not draft


@dataclass
class MaskGITState:
    """Decoding state of R rows: conditions, codes with the mask id V, and the next plan group."""

    cond: Cond
    ids_RL: Tensor
    group: int = 0


class MaskGIT(AnyOrderGenerator):
    """What every network that fills in masked codes shares; subclasses give the network.

    Args:
        spec: discrete codes with one id a position and one vocabulary.
        conditioner: gives the T condition tokens.
        dim: model width D.
        mask_schedule: how the share of masked codes is sampled in training, see `mask_schedule`.
        label_smoothing: of the cross entropy.
        unmasked_weight: weight of the loss at positions that are not masked.
        plan_steps: steps of the default plan, which takes positions in Halton order; decoders
            make their own.
    """

    no_decay = ("positions",)
    head: CategoricalHead

    def __init__(
        self,
        *,
        spec: CodeSpec | dict[str, Any],
        conditioner: Conditioner,
        dim: int,
        mask_schedule: str = "arccos",
        label_smoothing: float = 0.1,
        unmasked_weight: float = 0.1,
        plan_steps: int = 8,
    ) -> None:
        super().__init__()
        self.spec = CodeSpec.of(spec)
        self.require_ids(self.spec)
        if len({segment.vocab_sizes for segment in self.spec.segments}) > 1:
            raise IncompatibleError(
                f"{type(self).__name__} needs one vocabulary, not {self.spec.describe()}. Use a "
                "tokenizer with one codebook, or a generator of scales."
            )
        check_schedule(mask_schedule)
        self.conditioner, self.mask_schedule = conditioner, mask_schedule
        self.label_smoothing, self.unmasked_weight = label_smoothing, unmasked_weight
        L, V = self.spec.length, self.spec.vocab_size
        order, groups = halton_order(self.spec), []
        for size in group_sizes(mask_schedule, L, max(1, plan_steps)):
            groups.append(order[:size])
            order = order[size:]
        self.plan = Plan.of_groups(groups, any_order=True)
        self.mask_id = V
        self.embed = nn.Embedding(V + 1, dim)
        self.positions = nn.Parameter(torch.zeros(conditioner.length + L, dim))
        self.head = CategoricalHead(dim, V, bias=True)

    @abstractmethod
    def run(self, x_RSD: Tensor, mask: Tensor | None) -> Tensor:
        """Run the network over embedded tokens; returns what the head reads, (R, S, D).

        Args:
            x_RSD: condition tokens and codes, with their positions added.
            mask: (R, 1, 1, S), true where a key may be looked at; None when all may.
        """

    def hidden(self, ids_RL: Tensor, cond: Cond) -> Tensor:
        """Return hidden vectors (R, L, D) of ids with the mask id V at unknown positions."""
        if cond.tokens_BTD is None:
            raise UserError(
                f"{type(self).__name__} needs condition tokens; use a conditioner that gives some."
            )
        x_RSD = torch.cat((cond.tokens_BTD, self.embed(ids_RL)), dim=1) + self.positions
        mask = None
        if cond.mask_BT is not None:
            codes = cond.mask_BT.new_ones(ids_RL.shape, dtype=torch.bool)
            mask = torch.cat((cond.mask_BT.bool(), codes), dim=1)[:, None, None]  # R 1 1 S
        return self.run(x_RSD, mask)[:, -self.spec.length :]

    def logits(self, ids_RL: Tensor, cond: Cond) -> Tensor:
        """Return logits (R, L, V) of every position, the known ones too."""
        return self.head(self.hidden(ids_RL, cond))

    def mask(self, codes: Tensor, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        """Mask a random share of each sample's codes (B, L): at least one.

        Returns:
            the codes with the mask id in place, and where it is, boolean (B, L).
        """
        B, L = codes.shape
        if noise is None:
            noise = SeededNoise(torch.randint(2**62, (B,)), device=codes.device)
        at = torch.arange(L, device=codes.device)
        progress_B1 = noise.uniform(at[:1], use=SHARE).float().to(codes.device)
        share_B1 = unknown_share(self.mask_schedule, progress_B1).clamp(1e-6, 1.0)
        count_B1 = (L * share_B1).round().clamp(min=1)
        rank_BL = noise.uniform(at, use=ORDER).to(codes.device).argsort(dim=-1)
        masked_BL = rank_BL < count_B1
        return codes.masked_fill(masked_BL, self.mask_id), masked_BL

    def loss(self, codes: Tensor, cond: Cond, *, noise: Noise | None = None) -> LossOutput:
        """Return the cross entropy of codes (B, L) of which a random share is masked.

        Metrics: accuracy at the masked positions.
        """
        ids_BL, masked_BL = self.mask(codes, noise)
        logits = self.logits(ids_BL, cond)
        loss, nll_BL = masked_loss(
            logits,
            codes,
            masked_BL,
            label_smoothing=self.label_smoothing,
            unmasked_weight=self.unmasked_weight,
        )
        return LossOutput(loss, {"accuracy": masked_accuracy(logits, codes, masked_BL)}, nll_BL)

    def score(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return logits (B, L, V) given the earlier groups of the plan, one pass a group."""
        ids_BL = torch.full_like(codes, self.mask_id)
        parts = []
        for group in self.plan.groups:
            parts.append(self.logits(ids_BL, cond)[:, list(group)])
            ids_BL[:, list(group)] = codes[:, list(group)]
        order = torch.tensor([p for group in self.plan.groups for p in group], device=codes.device)
        return torch.cat(parts, dim=1)[:, order.argsort()]

    def start(self, cond: Cond, *, longest_draft: int = 0) -> MaskGITState:
        """Return a state in which every code is masked."""
        self.refuse_drafts(longest_draft > 0, use=STRATEGIES)
        shape = (len(cond), self.spec.length)
        ids = torch.full(shape, self.mask_id, device=self.embed.weight.device)
        return MaskGITState(cond, ids)

    def predict(
        self, state: MaskGITState, draft: Tensor | None = None, *, positions: Tensor | None = None
    ) -> Tensor:
        """Return logits (R, n, V) at `positions`, or of the plan's next group."""
        self.refuse_drafts(draft is not None, use=STRATEGIES)
        hidden = self.hidden(state.ids_RL, state.cond)
        return self.head(take(hidden, self._index(state, positions)))

    def commit(
        self,
        state: MaskGITState,
        codes: Tensor,
        counts: Tensor | None = None,
        *,
        positions: Tensor | None = None,
    ) -> None:
        """Fix codes (R, n) at `positions`, or of the plan's next group."""
        self.refuse_drafts(counts is not None, use=STRATEGIES)
        index = self._index(state, positions)
        state.group += positions is None
        state.ids_RL = state.ids_RL.scatter(1, index, codes.to(state.ids_RL.device))

    def _index(self, state: MaskGITState, positions: Tensor | None) -> Tensor:
        """Return positions (R, n)."""
        if positions is None:
            positions = torch.tensor(self.plan.groups[state.group])
        return positions.to(state.ids_RL.device).expand(len(state.cond), -1)


def masked_loss(
    logits: Tensor,
    codes: Tensor,
    masked_BL: Tensor,
    *,
    label_smoothing: float,
    unmasked_weight: float,
) -> tuple[Tensor, Tensor]:
    """Return the weighted mean cross entropy of logits (B, L, V), and its terms (B, L) in nats."""
    nll_BL = F.cross_entropy(
        logits.flatten(0, 1), codes.flatten(), reduction="none", label_smoothing=label_smoothing
    ).view(codes.shape)
    weight_BL = torch.where(masked_BL, 1.0, unmasked_weight)
    return (nll_BL * weight_BL).sum() / (weight_BL.sum() + 1e-8), nll_BL


def masked_accuracy(logits: Tensor, codes: Tensor, masked_BL: Tensor) -> Tensor:
    """Return the share of masked codes whose likeliest id is right."""
    right_BL = (logits.argmax(-1) == codes) & masked_BL
    return right_BL.sum() / masked_BL.sum().clamp(min=1)
