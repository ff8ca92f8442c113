"""Islands of float32 inside mixed-precision training."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def float32(method: Function) -> Function:
    """Run a method `(self, x, ...)` outside autocast, with its float tensor `x` in float32.

    Quantiser distances, entropies and diffusion samplers lose their meaning in bfloat16: integers
    above 256 are no longer exact and nearest codes change.
    """

    @wraps(method)
    def run(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return method(self, x.float() if x.is_floating_point() else x, *args, **kwargs)

    return run  # type: ignore[return-value]
