"""In which order the groups of an image are sampled, and back to the order of the positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from argen.decoding.context import SamplingContext
from argen.decoding.guidance import repeat_for_cfg
from argen.decoding.known import Known
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator

ORDER = 1 << 20  # the `use` of the numbers that order the positions; heads count theirs from 0


def check_order(order: str) -> None:
    """Raise for an unknown order."""
    if order not in ("plan", "random", "known_first"):
        raise UserError(f"Unknown order {order!r}; use plan, random or known_first.")


def check_fixed_order(generator: Generator, order: str) -> None:
    """Raise if the generator has no order, or another one than asked for."""
    name = type(generator).__name__
    if generator.plan.any_order:
        raise IncompatibleError(
            f"decoder `sequential` follows a fixed order; {name} samples random subsets: use "
            "decoder=masked."
        )
    if order != "plan" and not generator.plan.permutable:
        raise IncompatibleError(
            f"decoder `sequential` with order={order} needs a generator trained on permuted "
            f"orders, such as RAR; {name} has one order: use order=plan."
        )


def ordered_groups(
    generator: Generator,
    context: SamplingContext,
    order: str,
    *,
    batch: int,
    known: Known | None = None,
) -> tuple[list[Tensor], dict[str, Any]]:
    """Return the groups in the order they are sampled, and what `start` must be told of it.

    Args:
        generator: the generator.
        context: its noise makes random orders.
        order: `plan`; `random`, another one for every sample; `known_first`, given codes first.
        batch: number of samples B.
        known: given codes.

    Returns:
        positions of each group, (n,) or (B, 1), and the keyword arguments of `start`.

    Raises:
        UserError: for `known_first` without given codes.
    """
    device, L = next(generator.parameters()).device, generator.spec.length
    if order == "plan":
        return [torch.tensor(group, device=device) for group in generator.plan.groups], {}
    if order == "random":
        uniform = context.noise.uniform(torch.arange(L), use=ORDER)
        order_BL = uniform.expand(batch, L).argsort(-1).to(device)
    elif known is None:
        raise UserError("order=known_first needs known codes; pass known=(positions, codes).")
    else:
        order_BL = torch.argsort((~known.mask_BL).long(), dim=-1, stable=True)
    groups = list(order_BL.split(1, dim=1))
    return groups, {"order": repeat_for_cfg(order_BL, context.guidance.active)}


def in_position_order(
    sampled: Sequence[Tensor], groups: Sequence[Sequence[int] | Tensor]
) -> Tensor:
    """Put codes back into the order of their positions.

    Args:
        sampled: codes (B, n, ...) of each group, or of several groups in a row.
        groups: the positions of each group, numbers or a tensor (n,) or (B, n).

    Returns:
        codes (B, L, ...).
    """
    codes = torch.cat(list(sampled), dim=1)
    B, device = len(codes), codes.device
    columns = [torch.as_tensor(group, device=device).expand(B, -1) for group in groups]
    row = torch.arange(B, device=device)[:, None]
    return codes[row, torch.cat(columns, dim=1).argsort(-1)]
