"""Floating-point operations of a computation, counted by formula as it runs, and devices' peaks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

PEAKS = Path(__file__).with_name("peaks.yaml")


def count_flops(call: Callable[[], object]) -> int:
    """Run `call` and return the FLOPs of its matrix products, convolutions and attention.

    A multiplication and an addition count as two; attention counts in full also where a causal mask
    lets half of it be skipped, as in PaLM's convention (arXiv 2204.02311, appendix B). What is
    compiled is not seen: count the plain form.
    """
    with FlopCounterMode(display=False, custom_mapping=_CPU_OPERATIONS) as counter:
        call()
    return int(counter.get_total_flops())


def peak_flops(name: str, dtype: torch.dtype) -> float | None:
    """Return a device's peak FLOPs a second by its data sheet, None where it is not listed.

    Args:
        name: as `torch.cuda.get_device_name` gives it.
        dtype: of the products' operands.
    """
    devices: dict[str, dict[str, float]] = yaml.safe_load(PEAKS.read_text())["devices"]
    for pattern, rates in devices.items():
        if pattern in name:
            rate = rates.get(str(dtype).removeprefix("torch."))
            return None if rate is None else rate * 1e12
    return None


def _forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(grad_out: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad_out, query, key, value)


def _linear(input: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(input) * weight[0]


_ATEN = torch.ops.aten
# The CPU's fused attention and packed weights are missing from torch's own list; operands are given
# as shapes.
_CPU_OPERATIONS = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _forward,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
if torch.backends.mkldnn.is_available():
    _CPU_OPERATIONS[torch.ops.mkldnn._linear_pointwise] = _linear
