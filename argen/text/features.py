"""Text as numbers: token features with a mask, and the name of what made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from argen.errors import SpecError

PADDINGS = ("left", "right")


@dataclass(frozen=True)
class TextSpec:
    """What names the features of a frozen text encoder: equal specs, exchangeable features.

    Attributes:
        name: for people.
        fingerprint: 16 hexadecimal digits of the encoder's weights and vocabulary.
        dim: width F of the features.
        length: number of tokens T that every text is padded or cut to.
        padding: the side that is padded, `left` or `right`.
    """

    name: str
    fingerprint: str
    dim: int
    length: int
    padding: str

    @classmethod
    def of(cls, value: TextSpec | Mapping[str, Any]) -> TextSpec:
        """Return a spec from itself or from its dictionary."""
        return value if isinstance(value, cls) else cls(**value)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def describe(self) -> str:
        """Return it in words."""
        return (
            f"{self.name} ({self.length} tokens, {self.dim} wide, padded on the {self.padding}, "
            f"fingerprint {self.fingerprint})"
        )

    def same_features(self, other: TextSpec) -> bool:
        """Whether both give the same features, whatever they are called."""
        return self.to_dict() | {"name": ""} == other.to_dict() | {"name": ""}


def require_same_text(
    found: TextSpec, wanted: TextSpec, *, found_in: str, wanted_by: str, fix: str
) -> None:
    """Raise `SpecError` unless two specs give the same features; the message names both."""
    if not found.same_features(wanted):
        raise SpecError(
            f"{found_in} has text features of {found.describe()}, but {wanted_by} was trained on "
            f"those of {wanted.describe()}: {fix}."
        )


@dataclass
class TextFeatures:
    """Features of a frozen text encoder.

    Attributes:
        features_BTF: (B, T, F), padded rows zero.
        mask_BT: true for valid tokens.
        spec: what made them, where that is known.
    """

    features_BTF: Tensor
    mask_BT: Tensor
    spec: TextSpec | None = None

    def __len__(self) -> int:
        return self.features_BTF.shape[0]

    def __getitem__(self, index: Tensor | slice) -> TextFeatures:
        return TextFeatures(self.features_BTF[index], self.mask_BT[index], self.spec)

    def to(self, device: torch.device | str) -> TextFeatures:
        """Move both tensors."""
        return TextFeatures(self.features_BTF.to(device), self.mask_BT.to(device), self.spec)

    @staticmethod
    def cat(parts: list[TextFeatures]) -> TextFeatures:
        """Stack the rows of features of one encoder."""
        return TextFeatures(
            torch.cat([part.features_BTF for part in parts]),
            torch.cat([part.mask_BT for part in parts]),
            parts[0].spec,
        )
