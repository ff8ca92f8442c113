"""`argen tokenize`: a data set as code shards, written with the tokenizer of a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from argen.build import build
from argen.data.views import Views
from argen.pipeline import load
from argen.recipes.encode import larger_source, write_codes
from argen.runtime.command import require_positive, require_writable
from argen.runtime.distributed import own_device


@dataclass(frozen=True)
class TokenizingRequest:
    """Which images to encode, how, and where the codes go.

    Attributes:
        model: directory; its tokenizer encodes.
        data: how to build the images; their size is the tokenizer's.
        out: directory of the codes.
        views: stored versions of each image, see `argen.data.views.views_of`.
        crop: how much larger the images are that ten crops are taken from.
        moments: store mean and deviation where the tokenizer has them.
        batch_size: images encoded at once.
        shard_size: images a file.
        workers: threads that read images.
        seed: names the augmentations.
        text_encoder: how to build the encoder of the captions; None for no text features.
        device: as in the configuration.
        trust: build classes from outside argen that the model names.
    """

    model: str
    data: Mapping[str, Any]
    out: Path
    views: Views
    crop: float
    moments: bool
    batch_size: int
    shard_size: int
    workers: int
    seed: int
    text_encoder: Mapping[str, Any] | None
    device: str
    trust: bool

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> TokenizingRequest:
        """Return what the command's settings ask for.

        Raises:
            UserError: impossible numbers.
        """
        require_positive(settings, "batch_size", "shard_size")
        return cls(
            model=settings["model"],
            data=settings["data"],
            out=Path(settings["out"]),
            views=settings["views"],
            crop=settings["crop"],
            moments=settings["moments"],
            batch_size=settings["batch_size"],
            shard_size=settings["shard_size"],
            workers=settings["workers"],
            seed=settings["seed"],
            text_encoder=settings.get("text_encoder"),
            device=settings["device"],
            trust=settings["trust"],
        )


def tokenize_data(request: TokenizingRequest) -> list[str]:
    """Encode a data set on all ranks; returns the lines to print.

    Raises:
        UserError: a model, data set or directory that cannot be used.
    """
    pipe = load(request.model, device=own_device(request.device), trust=request.trust)
    data = {**request.data, "image_size": list(pipe.tokenizer.image_size)}
    source = build(data, trust=True)
    larger = larger_source(data, source, request.views, request.crop)
    text = build(request.text_encoder, trust=True) if request.text_encoder else None
    out = require_writable(request.out)
    codes = write_codes(
        pipe.tokenizer,
        source,
        out,
        views=request.views,
        larger=larger,
        moments=request.moments,
        batch_size=request.batch_size,
        shard_size=request.shard_size,
        workers=request.workers,
        seed=request.seed,
        text=None if text is None else text.to(pipe.device),
    )
    lines = [
        f"{out / split}: {len(part)} images x {len(part.views)} views"
        for split, part in codes.items()
    ]
    lines.append(f"codes: {codes['train'].spec.describe()}")
    return lines if text is None else [*lines, f"text: {text.spec.describe()}"]
