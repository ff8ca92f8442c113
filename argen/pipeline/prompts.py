"""Prompts, which are classes or texts, as what a generator's conditioner reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from argen.data.class_names import find_class
from argen.errors import UserError, suggest
from argen.generators.conditioning import Conditioner, TextConditioner
from argen.text.features import TextFeatures
from argen.text.reader import TextReader, pretrained


@dataclass
class Prompts:
    """One entry an image.

    Attributes:
        inputs: labels (N,) or text features, on the network's device.
        labels: class of each, or the place of its text among the different ones, long (N,).
        names: class names or texts.
    """

    inputs: Tensor | TextFeatures
    labels: Tensor
    names: list[str]

    @classmethod
    def of(
        cls,
        items: Sequence[int] | Sequence[str],
        conditioner: Conditioner,
        *,
        class_names: Sequence[str],
        reader: TextReader | None,
        device: torch.device,
    ) -> Prompts:
        """Return what class ids or texts stand for.

        Raises:
            UserError: if the model reads the other, or cannot read texts here.
        """
        if any(isinstance(item, str) for item in items):
            texts = list(cast(Sequence[str], items))
            unique = list(dict.fromkeys(texts))
            places = torch.tensor([unique.index(text) for text in texts])
            return cls(encode_text(texts, conditioner, reader, device), places, texts)
        require_no_text(conditioner)
        labels = torch.tensor(cast(Sequence[int], items), dtype=torch.long)
        names = [class_names[i] if class_names else str(i) for i in labels.tolist()]
        return cls(labels.to(device), labels, names)


def encode_text(
    texts: Sequence[str], conditioner: Conditioner, reader: TextReader | None, device: torch.device
) -> TextFeatures:
    """Return the features (N, T, F) of texts, as the conditioner wants them.

    Raises:
        UserError: if it reads no text, or the text encoder is not known.
        SpecError: if the encoder is not the one that the generator was trained with.
    """
    if not isinstance(conditioner, TextConditioner):
        raise UserError(
            f"This model reads no text (it has a {type(conditioner).__name__}): ask for classes."
        )
    if reader is None:
        raise UserError(
            "This model does not say which text encoder it was trained with: add "
            "text_encoder=pretrained text_encoder.path=DIR (in Python argen.load(..., "
            "text_encoder=DIR))."
        )
    return reader(texts, wanted=conditioner.text, device=device)


def num_classes(conditioner: Conditioner) -> int:
    """Return how many classes a conditioner knows; raises `UserError` if it takes none."""
    require_no_text(conditioner)
    count = getattr(conditioner, "num_classes", None)
    if count is None:
        raise UserError(
            f"This model's {type(conditioner).__name__} takes no classes, so none can be named."
        )
    return int(count)


def require_no_text(conditioner: Conditioner) -> None:
    """Raise `UserError` if prompts must be texts."""
    if isinstance(conditioner, TextConditioner):
        raise UserError("This model draws from text, not classes: add text='a red heart'.")


def reader_of(
    encoder: Path | str | Mapping[str, Any], conditioner: Conditioner | None
) -> TextReader:
    """Return a reader with the length and padding that a generator needs.

    Args:
        encoder: how to build it, or the directory of a `transformers` model.
        conditioner: of the generator.
    """
    if not isinstance(conditioner, TextConditioner):
        raise UserError("This model reads no text: leave text_encoder out.")
    config = dict(encoder) if isinstance(encoder, Mapping) else pretrained(encoder)
    config["length"] = conditioner.length
    if conditioner.text is not None:
        config["padding"] = conditioner.text.padding
    return TextReader(config, trust=True)


def class_ids(classes: Any, names: Sequence[str], *, count: int) -> list[int]:
    """Return class ids.

    A number is an id. A word is a name (see `argen.data.class_names`), and an id where no class is
    called so and it is written in digits.

    Args:
        classes: a name or an id, a list or tensor of them, or "all".
        names: class names in the order of the ids; empty when not known.
        count: number of classes.

    Raises:
        UserError: for a class that is not known, with close matches, or a name of several.
    """
    if hasattr(classes, "tolist"):
        classes = classes.tolist()
    if isinstance(classes, str | int):
        classes = [classes]
    if list(classes) == ["all"]:
        return list(range(count))
    return [_class_id(item, names, count) for item in classes]


def _class_id(item: Any, names: Sequence[str], count: int) -> int:
    if hasattr(item, "item"):  # a number of numpy's or torch's
        item = item.item()
    text = str(item).strip()
    found = find_class(text, names) if isinstance(item, str) else None
    if found is not None:
        return found
    if text.lstrip("-").isdigit():
        if not 0 <= int(text) < count:
            raise UserError(
                f"Class {text} is outside 0 to {count - 1}; this model knows {count} classes."
            )
        return int(text)
    if not names:
        raise UserError(
            f"Unknown class {text!r}: this model stores no class names; use ids 0 to {count - 1}."
        )
    shown = ", ".join(names[:12]) + (", ..." if count > 12 else "")
    raise UserError(f"Unknown class {text!r}.{suggest(text, names)} Known: {shown}.")
