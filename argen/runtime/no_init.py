"""Building a module whose weights are all read from a file right after: without drawing any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

DRAWS = {
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    torch.Tensor.erfinv_,  # of torch's truncated normal
    nn.init.normal_,  # these are seen whole, what they call is not
    nn.init.uniform_,
    nn.init.kaiming_uniform_,
}


class no_init_weights(TorchFunctionMode):
    """Parameters made meanwhile are zero where they would be drawn.

    Drawing them takes longer than reading them. Buffers are filled as ever, since some are no part
    of a file. What is built is useless until `load_strict` has seen every parameter.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Put zeros in the place of draws into parameters."""
        kwargs = kwargs or {}
        if func in DRAWS:
            filled = args[0] if args else kwargs["tensor"]
            if isinstance(filled, nn.Parameter):
                filled.detach().zero_()
                return filled
        return func(*args, **kwargs)
