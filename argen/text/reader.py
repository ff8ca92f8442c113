"""The text encoder that a model was trained with: how to build it, read when first needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from argen.build import TARGET, build_stored, locate, require_registered
from argen.errors import CheckpointError, UserError
from argen.text.base import TextEncoder
from argen.text.features import TextFeatures, TextSpec, require_same_text


class TextReader:
    """Encodes prompts for a generator; refuses an encoder that it was not trained with.

    Args:
        config: how to build the encoder; a path in it is kept absolute.
        trust: allow encoders that are not argen's own; for what the user wrote.
        source: the file that it stands in, for messages.

    Attributes:
        config: as given, paths absolute.
    """

    def __init__(
        self, config: Mapping[str, Any], *, trust: bool = False, source: str = "text_encoder"
    ) -> None:
        self.config, self._trust, self._source = dict(config), trust, source
        if not isinstance(self.config.get(TARGET), str):
            raise CheckpointError(f"{source} describes no text encoder: it has no _target_.")
        if trust:
            locate(self.config[TARGET], trust=True)
        else:
            require_registered(self.config, functions="text")
        for key in ("path", "tokenizer"):
            if isinstance(self.config.get(key), str | Path):
                self.config[key] = str(Path(self.config[key]).expanduser().resolve())
        self._encoder: TextEncoder | None = None

    @property
    def encoder(self) -> TextEncoder:
        """The encoder, loaded now if it was not yet."""
        if self._encoder is None:
            self._encoder = build_stored(
                self.config,
                TextEncoder,  # type: ignore[type-abstract]
                source=self._source,
                trust=self._trust,
                functions="text",
            )
        return self._encoder

    def __call__(
        self, texts: Sequence[str], *, wanted: TextSpec | None, device: torch.device | str
    ) -> TextFeatures:
        """Return features (B, T, F) of B texts.

        Equal texts are read once, and each by itself, so that its features, and the image drawn
        from them, do not depend on what else was asked for.

        Args:
            texts: the texts.
            wanted: what the generator was trained on; None when that is not known.
            device: where encoder and features go.

        Raises:
            SpecError: if the encoder's features are not what was wanted.
        """
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError("A text to draw must be given as words, e.g. text='a red heart'.")
        encoder = self.encoder.to(device)
        if wanted is not None:
            require_same_text(
                encoder.spec,
                wanted,
                found_in="The text encoder at hand",
                wanted_by="this generator",
                fix="name the right one with text_encoder=pretrained text_encoder.path=DIR",
            )
        unique = list(dict.fromkeys(texts))
        features = TextFeatures.cat([encoder([text]) for text in unique])
        return features[torch.tensor([unique.index(text) for text in texts], device=device)]


def pretrained(path: Path | str) -> dict[str, Any]:
    """Return how to build the encoder of the `transformers` library in a directory."""
    return {TARGET: "argen.text.pretrained.PretrainedText", "path": str(path)}
