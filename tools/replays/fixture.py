"""A golden fixture: what a published implementation computed, and how.

A fixture directory holds `card.json` (configuration in the reference's own names, a description
of every tensor, the procedure, the tolerance), `weights.safetensors` under the reference's keys
and `io.safetensors` with inputs and expected outputs. What a tensor is, is read from its
description, so that a replay serves any fixture of its system, not one in particular.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

_GRADIENT = re.compile(
    r"gradient of (?:(?P<scale>[\d.e+-]+)\s*\*\s*)?(?P<loss>[A-Za-z_]\w*).*?"
    r"(?:for|with respect to|wrt|w\.r\.t\.)\s+(?P<key>[\w.]+)"
)
_IN_BLOCK = re.compile(r"the (?P<part>[A-Za-z_]\w*) of the (?P<which>first|last) block")


class Fixture:
    """One fixture directory, read into memory.

    Attributes:
        name: the directory's name.
        card: the whole card.
        config: the reference's configuration.
        weights: its state dict.
        io: every recorded tensor.
        inputs: names of the recorded inputs and draws.
        expected: names of the tensors a replay must produce.
    """

    def __init__(self, directory: Path | str) -> None:
        path = Path(directory)
        self.name = path.resolve().name
        self.card: dict[str, Any] = json.loads((path / "card.json").read_text())
        self.config: dict[str, Any] = self.card.get("config", {})
        weights = path / "weights.safetensors"
        self.weights: dict[str, Tensor] = load_file(str(weights)) if weights.exists() else {}
        self.io: dict[str, Tensor] = load_file(str(path / "io.safetensors"))
        self.inputs = [name for name in self.io if self._is_input(name)]
        self.expected = [name for name in self.io if name not in self.inputs]

    @property
    def system(self) -> str:
        """Name of the published system."""
        return self.card["system"]

    @property
    def tolerance(self) -> tuple[float, float]:
        """Absolute and relative tolerance."""
        return self.card["tolerance"]["atol"], self.card["tolerance"]["rtol"]

    def __getitem__(self, name: str) -> Tensor:
        return self.io[name]

    def wants(self, *names: str) -> bool:
        """Whether any of these tensors is expected."""
        return any(name in self.expected for name in names)

    def description(self, name: str) -> str:
        """Return what the card says of a tensor, without a leading `[shape, range]`."""
        return re.sub(r"^\[[^\]]*\]\s*", "", self.card.get("tensors", {}).get(name, ""))

    def number(self, name: str, option: str, default: float) -> float:
        """Read `option value` (or option=value) out of a tensor's description."""
        found = re.search(rf"\b{re.escape(option)}[ =]+(-?[\d.]+\d|-?\d+)", self.description(name))
        return float(found.group(1)) if found else default

    def gradients(
        self,
        loss: Callable[[str, Mapping[str, Tensor]], Tensor],
        convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Compute every expected gradient, with respect to the reference's own parameters.

        Args:
            loss: takes a loss's name and our weights; returns the scalar.
            convert: the importer's translation of the reference's weights (differentiable).
        """
        found = {}
        for name, scale, term, key in self.wanted_gradients():
            if key not in self.weights:
                continue
            leaves = self.leaves()
            value = loss(term, convert(leaves)) * scale
            (found[name],) = torch.autograd.grad(value.sum(), leaves[key])
        return found

    def wanted_gradients(self) -> Iterator[tuple[str, float, str, str]]:
        """Yield (tensor, factor, loss, key) for each expected gradient that says what it is of."""
        for name in self.expected:
            match = _GRADIENT.search(self.description(name))
            if match:
                key = self._key(match["key"].rstrip("."), self.description(name))
                yield name, float(match["scale"] or 1.0), match["loss"], key

    def _key(self, key: str, text: str) -> str:
        """Return the key that a description names, also as `the w2 of the last block`."""
        inside = _IN_BLOCK.search(text)
        if key in self.weights or inside is None:
            return key
        layers = {
            int(number[1]): k
            for k in self.weights
            if re.search(rf"\.{inside['part']}(\.weight)?$", k)
            and (number := re.search(r"\.(\d+)\.", k))
        }
        pick = max if inside["which"] == "last" else min
        return layers[pick(layers)] if layers else key

    def leaves(self) -> dict[str, Tensor]:
        """Return fresh copies of the weights that gradients can be taken for."""
        return {
            # Batch norms move their statistics in place and take no gradient for them.
            k: v.clone().requires_grad_(v.is_floating_point() and ".running_" not in k)
            for k, v in self.weights.items()
        }

    def _is_input(self, name: str) -> bool:
        text = self.description(name).lower()
        # What no run can be expected to repeat, such as a draw from an unknown generator state.
        return text.startswith("input") or "for information only" in text


class Bound(nn.Module):
    """Calls methods of a module with other weights in place: `Bound(m)(weights, "score", x)`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method by name."""
        target = self.module if method == "forward" else getattr(self.module, method)
        return target(*args, **kwargs)

    def under(self, weights: Mapping[str, Tensor], method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the module with `weights` in place of its own."""
        named = {f"module.{k}": v for k, v in weights.items()}
        return torch.func.functional_call(self, named, (method, *args), kwargs)
