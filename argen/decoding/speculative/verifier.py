"""The one verifier: keep or replace drafts, over all rows and slots at once.

Shapes: B samples, k drafts, n = k + 1 slots of a window, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from argen.decoding.speculative.acceptance import Acceptance
from argen.decoding.speculative.decisions import ACCEPT, FRESH, RESIDUAL, Decisions, use_of
from argen.decoding.speculative.distributions import Distributions
from argen.decoding.speculative.drafters import AfterRejection, Draft, take_slots


def verify(
    draft: Draft,
    distributions: Distributions,
    positions: Tensor,
    decisions: Decisions,
    number: int,
    *,
    acceptance: Acceptance,
    after_rejection: AfterRejection,
    accepted_before_B: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Test drafts and sample what is missing.

    Sub-tokens are tested one after another like positions of their own: what stands before the
    first that is rejected stays, that one is replaced, and the rest of its code is sampled.

    Args:
        draft: the drafts.
        distributions: of all n slots.
        positions: positions (B, n) of the slots.
        decisions: random decisions.
        number: number of the pass.
        acceptance: the rule.
        after_rejection: policy behind the first rejected draft, see `Drafter`.
        accepted_before_B: how many first drafts of each row are accepted already.

    Returns:
        ids (B, n, G) and their distributions (B, n, G, V): final in the first so many slots, drafts
        for the next passes from there up to the draft's width; and that number of final slots
        (B,).
    """
    B, k, G = draft.codes.shape
    slots = torch.arange(k + 1, device=positions.device).expand(B, k + 1)
    width_B1 = draft.width_B[:, None]
    ids = torch.cat((draft.codes, draft.codes.new_zeros(B, 1, G)), dim=1)
    fixed = torch.zeros_like(slots)  # sub-tokens of each slot that stand
    accepted_B = torch.zeros_like(draft.width_B)
    if k:
        p, here = distributions.probs(ids)[:, :k], slots[:, :k] < width_B1
        probability = acceptance.probability(p, draft.probs, draft.codes)
        if accepted_before_B is not None:
            probability = torch.where(
                slots[:, :k, None] < accepted_before_B[:, None, None], 1.0, probability
            )
        kept = decisions.accept(
            probability,
            positions[:, :k],
            use=use_of(ACCEPT, number),
            where=here,
            chain=after_rejection != "continue",
        )
        good = kept.sum(-1)  # B k, sub-tokens kept
        accepted_B = (good == G).long().cumprod(1).sum(1)
        # Where replacements happen: at the first rejected draft, or at all of them.
        at = slots[:, :k] if after_rejection == "continue" else accepted_B.clamp(max=k - 1)[:, None]
        sub = take_slots(good, at)
        wrong = take_slots(here, at) & (sub < G)
        sub = sub.clamp(max=G - 1)
        rows = torch.arange(B, device=sub.device)[:, None]
        residual = acceptance.residual(
            p[rows, at, sub], draft.probs[rows, at, sub], draft.codes[rows, at, sub]
        )
        use = use_of(RESIDUAL, number)
        new = decisions.choose(residual, take_slots(positions, at), use=use, where=wrong)
        ids = _put(ids, at, sub, new, wrong)
        fixed[:, :k] = torch.where(here, (good + 1).clamp(max=G), 0)
        if after_rejection != "continue":
            fixed = torch.where(slots <= accepted_B[:, None], fixed, 0)
    end_B1 = accepted_B[:, None] if after_rejection == "stop" else width_B1
    for g in range(G):
        probs, missing = distributions.probs(ids)[:, :, g], fixed <= g
        where = missing & (slots <= end_B1)
        if after_rejection == "gumbel":
            new = decisions.gumbel_max(probs, positions, where=where, sub=g)
        else:
            use = use_of(FRESH, number)
            new = decisions.choose(probs, positions, use=use, where=where, sub=g)
        ids = _put(ids, slots, torch.full_like(slots, g), new, missing)
    return ids, distributions.probs(ids), accepted_B + 1


def _put(ids: Tensor, at: Tensor, sub: Tensor, new: Tensor, where: Tensor) -> Tensor:
    """Put `new` (B, s) at slots `at` and sub-tokens `sub` of ids (B, n, G), where true."""
    rows = torch.arange(len(ids), device=ids.device)[:, None].expand_as(at)
    ids = ids.clone()
    ids[rows, at, sub] = torch.where(where, new, ids[rows, at, sub])
    return ids
