"""Linear layers for passes of a few rows, where reading the weights is all the time it takes.

Decoding one picture multiplies every weight with one or two rows. In bfloat16 the CPU's product of
few rows with many columns reads weights at half of the memory's rate; the product of the weights
with the transposed rows, which is the same, at two thirds or more (oneDNN 3, with AMX).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW = 64  # rows up to which the transposed product is clearly the faster one


class FewRowsLinear(nn.Linear):
    """A linear layer that picks its product by the number of rows; made by `for_few_rows`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        rows = input.shape[:-1].numel()
        wanted = 0 < rows <= FEW and input.dtype == torch.bfloat16 and input.device.type == "cpu"
        if not wanted or torch.is_grad_enabled():
            return F.linear(input, self.weight, self.bias)
        product = (self.weight @ input.reshape(rows, -1).t()).t().contiguous()
        if self.bias is not None:
            product = product + self.bias
        return product.reshape(*input.shape[:-1], -1)


def for_few_rows(network: nn.Module, *, on: bool) -> None:
    """Let the linear layers of a network pick their product, or go back to the ordinary one.

    Weights and their names stay as they are.
    """
    old, new = (nn.Linear, FewRowsLinear) if on else (FewRowsLinear, nn.Linear)
    for module in network.modules():
        if type(module) is old:
            module.__class__ = new
