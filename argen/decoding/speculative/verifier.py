"""The one verifier: keep or replace drafts, over all rows and slots at once.

Names: B samples, k drafts, n = k + 1 slots of a window, G sub-tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from argen.decoding.speculative.acceptance import Acceptance
from argen.decoding.speculative.decisions import FRESH, KEEP, REPAIR, Draws, use_of
from argen.decoding.speculative.distributions import Laws
from argen.decoding.speculative.drafters import Behind, Draft, take_slots


def verify(
    draft: Draft,
    laws: Laws,
    positions: Tensor,
    draws: Draws,
    number: int,
    *,
    acceptance: Acceptance,
    behind: Behind,
    sure_B: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Test drafts and draw what is missing.

    Sub-tokens are tested one after another like positions of their own: what stands before the
    first that is not kept stays, that one is replaced, and the rest of its code is drawn.

    Args:
        draft: the drafts.
        laws: of all n slots.
        positions: positions (B, n) of the slots.
        draws: random decisions.
        number: number of the pass.
        acceptance: the rule.
        behind: what happens behind the first draft that is not kept, see `Drafter`.
        sure_B: first drafts of each row that are kept already.

    Returns:
        ids (B, n, G) and their laws (B, n, G, V): final in the first so many slots, drafts for the
        next passes from there up to the draft's width; and that number of final slots (B,).
    """
    B, k, G = draft.codes.shape
    slots = torch.arange(k + 1, device=positions.device).expand(B, k + 1)
    width_B1 = draft.width_B[:, None]
    ids = torch.cat((draft.codes, draft.codes.new_zeros(B, 1, G)), dim=1)
    settled = torch.zeros_like(slots)  # sub-tokens of each slot that stand
    accepted_B = torch.zeros_like(draft.width_B)
    if k:
        p, here = laws.given(ids)[:, :k], slots[:, :k] < width_B1
        chance = acceptance.chance(p, draft.laws, draft.codes)
        if sure_B is not None:
            chance = torch.where(slots[:, :k, None] < sure_B[:, None, None], 1.0, chance)
        kept = draws.keep(
            chance,
            positions[:, :k],
            use=use_of(KEEP, number),
            matters=here,
            chain=behind != "continue",
        )
        good = kept.long().cumprod(-1).sum(-1)  # B k, sub-tokens kept
        accepted_B = (good == G).long().cumprod(1).sum(1)
        # Where replacements happen: at the first draft that is not kept, or at all of them.
        at = slots[:, :k] if behind == "continue" else accepted_B.clamp(max=k - 1)[:, None]
        sub = take_slots(good, at)
        wrong = take_slots(here, at) & (sub < G)
        sub = sub.clamp(max=G - 1)
        rows = torch.arange(B, device=sub.device)[:, None]
        repair = acceptance.repair(
            p[rows, at, sub], draft.laws[rows, at, sub], draft.codes[rows, at, sub]
        )
        use = use_of(REPAIR, number)
        new = draws.choose(repair, take_slots(positions, at), use=use, matters=wrong)
        ids = _put(ids, at, sub, new, wrong)
        settled[:, :k] = torch.where(here, (good + 1).clamp(max=G), 0)
        if behind != "continue":
            settled = torch.where(slots <= accepted_B[:, None], settled, 0)
    end_B1 = accepted_B[:, None] if behind == "nothing" else width_B1
    for g in range(G):
        law, missing = laws.given(ids)[:, :, g], settled <= g
        matters = missing & (slots <= end_B1)
        if behind == "race":
            new = draws.race(law, positions, matters=matters, sub=g)
        else:
            use = use_of(FRESH, number)
            new = draws.choose(law, positions, use=use, matters=matters, sub=g, subs=G)
        ids = _put(ids, slots, torch.full_like(slots, g), new, missing)
    return ids, laws.given(ids), accepted_B + 1


def _put(ids: Tensor, at: Tensor, sub: Tensor, new: Tensor, where: Tensor) -> Tensor:
    """Put `new` (B, s) at slots `at` and sub-tokens `sub` of ids (B, n, G), where true."""
    rows = torch.arange(len(ids), device=ids.device)[:, None].expand_as(at)
    ids = ids.clone()
    ids[rows, at, sub] = torch.where(where, new, ids[rows, at, sub])
    return ids
