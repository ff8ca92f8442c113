"""Which generators a feature drafter drafts for, and a new drafter fitted to one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from argen.build import build
from argen.errors import IncompatibleError
from argen.generators.base import Generator
from argen.generators.drafter.feature_drafter import FeatureDrafter
from argen.generators.next_token import NextToken
from argen.layers.transformer import Block


def require_target(generator: Generator) -> NextToken:
    """Return a generator that drafts can be made for.

    Raises:
        IncompatibleError: unless it draws code after code, one id a position.
    """
    if not isinstance(generator, NextToken) or len(generator.head.id_sizes) != 1:
        name, jacobi = type(generator).__name__, generator.plan.lookahead
        raise IncompatibleError(
            f"A drafter is for next-token generators with one id a position, not for {name}"
            + (": decoder=jacobi drafts without one." if jacobi else ", whose codes none drafts.")
        )
    return generator


def new_drafter(config: Mapping[str, Any], target: NextToken) -> FeatureDrafter:
    """Build a drafter with the target's codes, widths and rotary positions, and its embedding.

    Args:
        config: a preset of `configs/drafter`, without its `loss`; what it leaves out or gives as
            null is the target's.
        target: the trained generator.
    """
    own = {key: value for key, value in config.items() if value is not None}
    drafter: FeatureDrafter = build({**facts(target), **own}, trust=True)
    with torch.no_grad():
        drafter.embed.weight.copy_(code_vectors(target, drafter.embed.num_embeddings))
    return drafter


def facts(target: NextToken) -> dict[str, Any]:
    """Return the arguments of `FeatureDrafter` that follow from its target."""
    block = target.blocks[0]
    assert isinstance(block, Block)
    attention, rotary = block.attention, dict(target.rotary)
    if not isinstance(rotary.get("rope", ""), str):  # a table of one's own: as it was described
        rotary["rope"] = cast(Any, target).config["rope"]
    return {
        "spec": target.spec.to_dict(),
        "dim": attention.out.out_features,
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "ffn_hidden": block.ffn_hidden,
        "norm_eps": getattr(block.ffn_norm, "eps", 1e-6),
        "prefix_length": target.prefix_length,
        **rotary,
    }


@torch.no_grad()
def code_vectors(target: NextToken, count: int) -> Tensor:
    """Return what the target reads of the first `count` ids, positions aside, (count, D)."""
    table = getattr(target, "embed", None)
    table = getattr(target.head, "embed", None) if table is None else table
    assert isinstance(table, nn.Module), f"{type(target).__name__} embeds codes in another way"
    return table(torch.arange(count, device=next(table.parameters()).device))
