"""Watches how large the tensors of a computation are."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Records the largest number of elements any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        parts = found if isinstance(found, list | tuple) else [found]
        for part in parts:
            if isinstance(part, torch.Tensor):
                self.elements = max(self.elements, part.numel())
        return found
