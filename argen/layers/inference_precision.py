"""A network's weights in the precision that it samples in."""

from __future__ import annotations

import torch
from torch import nn

from argen.errors import UserError
from argen.layers.cpu.int8 import round_weights
from argen.layers.cpu.packed import pack_weights, unpack_weights

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}


def check_precision(name: str) -> None:
    """Raise a UserError unless `name` is a precision that models sample in."""
    if name not in PRECISIONS:
        raise UserError(f"Unknown precision={name}; use {', '.join(PRECISIONS)}.")


def to_precision(network: nn.Module, name: str, *, rows: int | None = None) -> None:
    """Convert the weights in place and, on a CPU, pack them for its matmuls.

    Args:
        network: in evaluation mode; `unpack_weights` makes it trainable again.
        name: `float32`, `bfloat16`, or `int8`: linear layers with int8 weights, on a CPU and for
            good, the rest in float32.
        rows: that a matmul has in sampling, where it is known; see `pack_weights`.

    Raises:
        UserError: for another name, or int8 where there is no such matmul.
    """
    check_precision(name)
    unpack_weights(network)
    network.to(PRECISIONS[name])
    if name == "int8":
        round_weights(network)
    pack_weights(network, rows=rows)
