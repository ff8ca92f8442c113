"""The contract of text encoders: texts in, token features of a fixed number of tokens out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn

from argen.text.features import TextFeatures, TextSpec


class TextEncoder(nn.Module, ABC):
    """A frozen network that reads texts.

    Attributes:
        spec: names the features; a generator trained on them refuses others.
    """

    spec: TextSpec

    @abstractmethod
    def forward(self, texts: Sequence[str]) -> TextFeatures:
        """Encode B texts as float32 features (B, T, F), zero where padded, and a mask (B, T).

        Longer texts are cut to T tokens, with a warning in the log.
        """
