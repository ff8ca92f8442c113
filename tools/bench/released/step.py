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
    """A published generator as it is trained."""

    @classmethod
    @abstractmethod
    def like(cls, generator: Any) -> ReleasedNetwork:
        """Return one of the same sizes as an argen generator, with random weights."""

    @abstractmethod
    def forward(self, codes: Tensor, label: Tensor) -> Tensor:
        """Return the mean training loss of codes (B, L[, C]) and labels (B,)."""

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the published optimiser."""
        matrices = [p for p in self.parameters() if p.ndim >= 2 and p.requires_grad]
        rest = [p for p in self.parameters() if p.ndim < 2 and p.requires_grad]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), **self.optimizer_options())

    def optimizer_options(self) -> dict[str, Any]:
        """Return what else the published script passes to AdamW."""
        return {}


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
            network: ReleasedNetwork = import_module(f"bench.released.{system}").Network.like(
                generator
            )
            return network
    known = ", ".join(f"{system}_..." for system in SYSTEMS)
    raise UserError(f"The released training step of {name} is not written here; there are {known}.")
