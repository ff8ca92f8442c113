"""The published training steps, by the start of a generator preset's name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import UserError

SYSTEMS = ("llamagen", "mar", "maskgit", "nar", "rar", "var", "xar")


class ReleasedNetwork(nn.Module, ABC):
    """A published generator as it is trained, by AdamW.

    Attributes:
        lr: learning rate.
        betas: decay rates of the two moments.
        weight_decay: of what is not `spared`.
        fused: whether the published script asks for the fused kernel.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    fused: bool | None = None

    @classmethod
    @abstractmethod
    def like(cls, generator: Any) -> ReleasedNetwork:
        """Return one of the same sizes as an argen generator, with random weights."""

    @abstractmethod
    def forward(self, codes: Tensor, label: Tensor) -> Tensor:
        """Return the mean training loss of codes (B, L[, C]) and labels (B,)."""

    def spared(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter does not decay."""
        return parameter.ndim < 2

    def optimizer(self) -> torch.optim.AdamW:
        """Return the published optimiser."""
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for n, p in named if self.spared(n, p)], "weight_decay": 0.0},
            {
                "params": [p for n, p in named if not self.spared(n, p)],
                "weight_decay": self.weight_decay,
            },
        ]
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=self.fused)


def released_network(name: str, generator: Any) -> ReleasedNetwork:
    """Return the published network that a generator preset re-implements.

    Args:
        name: of the preset.
        generator: built from it; its sizes are taken over.

    Raises:
        UserError: for a system whose step is not written here.
    """
    for system in SYSTEMS:
        if name.startswith(f"{system}_"):
            network: ReleasedNetwork = import_module(f"released.{system}").Network.like(generator)
            return network
    known = ", ".join(f"{system}_..." for system in SYSTEMS)
    raise UserError(f"The released training step of {name} is not written here; there are {known}.")
