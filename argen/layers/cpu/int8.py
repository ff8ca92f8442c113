"""Linear layers with int8 weights, for drawing on a CPU: a quarter of the bytes of float32.

One scale a column of outputs; inputs are rounded to int8 with a scale of their own at every call,
and matmuls are summed in int32 (FBGEMM, arXiv 2101.05615).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import UserError


class Int8Linear(nn.Module):
    """A linear layer whose weights were rounded to int8; takes and gives float32.

    Args:
        linear: the layer in float32, on the CPU.

    Attributes:
        weight: empty; says type and place to networks that ask their layers for those.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.empty(0)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float().contiguous()
        scales = weight.abs().amax(dim=1).clamp(min=1e-12).double() / 127
        with warnings.catch_warnings():  # torch speaks of replacing these tensors some day
            warnings.simplefilter("ignore")
            rounded = torch.quantize_per_channel(
                weight, scales, torch.zeros(len(scales), dtype=torch.long), 0, torch.qint8
            )
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.packed: Any = torch.ops.quantized.linear_prepack(rounded, bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        output: Tensor = torch.ops.quantized.linear_dynamic(input, self.packed, reduce_range=False)
        return output


def round_weights(network: nn.Module) -> int:
    """Put `Int8Linear` in the place of every plain linear layer; returns how many there were.

    Raises:
        UserError: the network is not on the CPU, or torch has no int8 matmul here.
    """
    if any(parameter.device.type != "cpu" for parameter in network.parameters()):
        raise UserError("int8 weights are for the CPU: use device=cpu, or precision=bfloat16.")
    engines = {"fbgemm", "x86", "onednn"} & set(torch.backends.quantized.supported_engines)
    if not engines or not hasattr(torch, "quantize_per_channel"):
        raise UserError("This build of torch has no int8 matmul; use precision=float32.")
    count = 0
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))
                count += 1
    return count


def holds_int8(network: nn.Module) -> bool:
    """Whether a network's weights were rounded."""
    return any(isinstance(module, Int8Linear) for module in network.modules())
