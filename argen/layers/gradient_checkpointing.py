"""Gradient checkpointing: blocks keep their input and run again in the backward pass.

Any module may take part by declaring `checkpointable = True`; transformer and residual blocks do.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from argen.errors import UserError


def checkpointable_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules of a network that declare `checkpointable = True`."""
    for child in network.children():
        if getattr(child, "checkpointable", False):
            yield child
        else:
            yield from checkpointable_blocks(child)


def enable_gradient_checkpointing(network: nn.Module) -> int:
    """Let every block of a network recompute its activations in the backward pass, in place.

    Numbers, names of parameters and classes stay; copies of the network recompute likewise.

    Returns:
        the number of blocks.

    Raises:
        UserError: if no module of the network declares `checkpointable = True`.
    """
    blocks = list(checkpointable_blocks(network))
    if not blocks:
        raise UserError(
            f"{type(network).__name__} has no blocks that declare `checkpointable = True`; leave "
            "fit.gradient_checkpointing out, or declare it in the class of its blocks."
        )
    for block in blocks:
        # Bound to the block, so that a copy of the block is given a method of its own.
        block.forward = MethodType(_checkpointed_forward, block)
    return len(blocks)


def _checkpointed_forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run the block, again in the backward pass, with the same dropout."""
    forward = MethodType(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
