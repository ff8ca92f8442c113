"""Several optimisers that step as one, each over parameters of its own."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer


class JoinedState(ChainMap[Any, Any]):
    """The states of several optimisers; what is written goes to the one that has it."""

    def __getitem__(self, key: Any) -> Any:
        # The states are made on demand: only asking first leaves the wrong ones as they are.
        return next(state[key] for state in self.maps if key in state)

    def __setitem__(self, key: Any, value: Any) -> None:
        owner = next(state for state in self.maps if key in state)
        owner[key] = value


class JoinedOptimizer(Optimizer):
    """Steps its parts one after the other; schedules and clipping see the groups of all of them.

    Args:
        parts: optimisers without a parameter in common.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([p for part in parts for g in part.param_groups for p in g["params"]], {})
        self._take_groups()

    def _take_groups(self) -> None:
        # The very dictionaries of the parts: a learning rate that is set here is theirs.
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state = JoinedState(*(part.state for part in self.parts))  # type: ignore[assignment]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Let every part take its step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parts."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the parts, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the parts.

        Raises:
            ValueError: the state is that of another number of parts, or of one plain optimiser.
        """
        saved = state_dict.get("parts")
        if saved is None or len(saved) != len(self.parts):
            raise ValueError("The checkpoint was written with other optimisers.")
        for part, state in zip(self.parts, saved):
            part.load_state_dict(state)
        self._take_groups()
