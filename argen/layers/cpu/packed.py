"""Linear layers whose weights are laid out for the CPU's matmuls, for sampling.

Drawing one image multiplies every weight with one or two rows, and torch's ordinary product of so
few rows reads weights at a fraction of the memory's rate. oneDNN reads weights that were reordered
once faster, and multiplies many rows faster too; `benchmarks/README.md` has the times.
"""

from __future__ import annotations

import platform
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from argen.layers.attention import QVBiasLinear

FEW_ROWS = 3  # so many float32 rows torch's own product multiplies faster on Intel's processors
PACKED = (nn.Linear, QVBiasLinear)  # no other subclass: they may read their weights themselves

_library = torch.library.Library("argen", "DEF")
_library.define("packed_linear(Tensor input, Tensor packed, Tensor? bias, int width) -> Tensor")


def _product(input: Tensor, packed: Tensor, bias: Tensor | None, width: int) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], "")
    return output


def _shape_of_product(input: Tensor, packed: Tensor, bias: Tensor | None, width: int) -> Tensor:
    return input.new_empty(*input.shape[:-1], width)


# The compiler takes oneDNN's own operation only with weights that it holds as constants.
_library.impl("packed_linear", _product, "CompositeExplicitAutograd")
torch.library.register_fake("argen::packed_linear", _shape_of_product, lib=_library)


class PackedLinear(nn.Module):
    """A linear layer with packed weights; it cannot be trained.

    Its state dict has the weights in the ordinary order.

    Args:
        linear: the layer, on the CPU. Its own copy of the weights is given up until `unpacked`.

    Attributes:
        weight: empty; says type and place to networks that ask their layers for those.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        full = linear.full_bias() if isinstance(linear, QVBiasLinear) else linear.bias
        self.full_bias = None if full is None else full.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        linear.weight.data = linear.weight.data.new_empty(0)
        self.weight = linear.weight.data
        self._linear = [linear]  # in a list: no child, so that its empty weight is not a parameter

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        if input.numel() == 0:
            return input.new_empty(*input.shape[:-1], self.out_features)
        if torch.compiler.is_compiling():
            output: Tensor = torch.ops.argen.packed_linear(
                input, self.packed, self.full_bias, self.out_features
            )
            return output
        return _product(input, self.packed, self.full_bias, self.out_features)

    def unpacked(self) -> nn.Linear:
        """Return the ordinary layer, with the weights it had."""
        linear = self._linear[0]
        linear.weight.data = self.packed.to_dense()
        return linear

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._linear[0]._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.packed.to_dense()

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        """Share the packed weights, which do not change; what is `unpacked` is the copy's own."""
        copy = self.__new__(type(self))
        nn.Module.__init__(copy)
        copy.__dict__ |= {k: v for k, v in self.__dict__.items() if k not in copy.__dict__}
        copy.training = self.training
        copy._linear = deepcopy(self._linear, memo)
        return copy


def pack_weights(network: nn.Module, *, rows: int | None = None) -> int:
    """Put `PackedLinear` in the place of linear layers; returns how many it put.

    Args:
        network: on its device, in its precision.
        rows: that a product has; None where it is not known, and then many are assumed.

    Nothing is packed where torch has no oneDNN, or none for the type of the weights; nor a layer
    that shares its weights with another, or lies in a module with `reads_weights`, which uses those
    of its layers on its own.
    """
    if not torch.backends.mkldnn.is_available():
        return 0
    held: dict[int, int] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            held[id(parameter)] = held.get(id(parameter), 0) + 1
    return _pack_children(network, held, rows)


def _pack_children(module: nn.Module, held: dict[int, int], rows: int | None) -> int:
    count = 0
    if getattr(module, "reads_weights", False):
        return 0
    for name, child in list(module.named_children()):
        linear = cast(nn.Linear, child)
        alone = type(child) in PACKED and held[id(linear.weight)] == 1
        if alone and _suits(linear.weight, rows):
            setattr(module, name, PackedLinear(linear))
            count += 1
        else:
            count += _pack_children(child, held, rows)
    return count


def unpack_weights(network: nn.Module) -> None:
    """Put the ordinary layers back."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, PackedLinear):
                setattr(module, name, child.unpacked())


def _suits(weight: Tensor, rows: int | None) -> bool:
    """Whether oneDNN has matmuls for such weights here, and torch no faster ones."""
    if weight.device.type != "cpu":
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    few = rows is not None and rows <= FEW_ROWS and torch.backends.mkl.is_available()
    return weight.dtype == torch.float32 and not (few and _intel())


@cache
def _intel() -> bool:
    """Whether the processor is one that MKL has its best matmuls for."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.is_file() else platform.processor()
    return "Intel" in text
