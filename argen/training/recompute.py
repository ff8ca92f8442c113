"""Activation checkpointing: blocks keep their input and run again in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from argen.errors import UserError
from argen.generators.maskgit.bert import BertBlock
from argen.generators.maskgit.uvit import UViTBlock
from argen.layers.conv import ResBlock
from argen.layers.transformer import Block

BLOCKS = (Block, BertBlock, UViTBlock, ResBlock)


class Recomputed:
    """Mixed in before a block's class; names of parameters stay, and so do checkpoints."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block, again in the backward pass, with the same dropout."""
        run = super().forward  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, **kwargs)


def recompute_activations(network: nn.Module) -> int:
    """Let every transformer and residual block of a network recompute its activations.

    Returns:
        the number of blocks.

    Raises:
        UserError: if the network has none.
    """
    count = 0
    for module in network.modules():
        if isinstance(module, BLOCKS) and not isinstance(module, Recomputed):
            kind = type(module)
            module.__class__ = type(f"Recomputed{kind.__name__}", (Recomputed, kind), {})
            count += 1
    if not count:
        raise UserError(
            f"{type(network).__name__} has no blocks to recompute; leave "
            "fit.gradient_checkpointing out."
        )
    return count
