"""Frozen networks: never in training mode, not saved, read at the depths that are named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Frozen(nn.Module):
    """Stays in evaluation mode and out of checkpoints: its weights live in the file they came from.

    Subclasses call `freeze` when they are built.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_bring_along)

    def freeze(self) -> None:
        """Take all parameters out of training."""
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode: dropout in a distance would only be noise."""
        return super().train(False)


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]


def _bring_along(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = [*module.named_parameters(), *module.named_buffers()]
    state.update({prefix + key: value for key, value in own})


def unit_channels(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Return x (B, C, h, w) divided by its length over the channels."""
    # Inside the root, so that a pixel without any activation has a gradient.
    return x / (x.square().sum(1, keepdim=True) + eps).sqrt()


class TappedNetwork(Frozen):
    """The outputs of some parts of a frozen network, for images in [-1, 1].

    Args:
        network: takes images normalised by `mean` and `std`.
        taps: names of its submodules.
        mean: subtracted from images in [0, 1], per channel.
        std: they are then divided by it.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        taps: Sequence[str],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        known = [name for name, _ in network.named_modules() if name]
        missing = [tap for tap in taps if tap not in known]
        if missing or not taps:
            raise UserError(
                f"{type(network).__name__} has no part {', '.join(missing) or '(none given)'}; "
                f"taps are names such as {', '.join(known[:3])}."
            )
        self.network, self.taps = network, tuple(taps)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.freeze()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return what each tapped part gives for images (B, 3, H, W), in the order of the taps."""
        found: dict[str, Tensor] = {}

        def keeper(tap: str) -> Callable[[nn.Module, Any, Tensor], None]:
            def keep(_: nn.Module, __: Any, output: Tensor) -> None:
                found[tap] = output

            return keep

        # For this pass only: a hook kept by the network would outlive copies of this module.
        hooks = [
            self.network.get_submodule(tap).register_forward_hook(keeper(tap)) for tap in self.taps
        ]
        try:
            self.network(((images + 1) / 2 - self.mean) / self.std)
        finally:
            for hook in hooks:
                hook.remove()
        return [found[tap] for tap in self.taps]
