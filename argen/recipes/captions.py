"""Captions on their way to a generator: who reads them, how they are stored, which are shown."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from argen.build import build
from argen.data.class_names import match_classes
from argen.data.codes import CodeDataset
from argen.data.images import ImageDataset, ImageSource
from argen.data.shards import Extra
from argen.errors import UserError
from argen.evaluation.label_order import balanced_labels, spread_order
from argen.generators.conditioning import TextConditioner
from argen.pipeline import Pipeline
from argen.runtime.presets import reads_text
from argen.text.base import TextEncoder
from argen.text.reader import TextReader


def captions_of(source: ImageSource, images: ImageDataset) -> list[str]:
    """Return the captions of one side of a data set.

    Raises:
        UserError: if it has none.
    """
    if images.captions is None:
        raise UserError(
            f"Not all images of {source.name} have captions: with data=folder give "
            "data.captions=captions.csv (or .txt, .json, or beside), with data=webdataset put a "
            ".txt beside every image; data=emoji has its own."
        )
    return images.captions


def encoder_for(run: Mapping[str, Any], generator: Mapping[str, Any]) -> TextEncoder | None:
    """Return the text encoder of a run, None where none is needed.

    Args:
        run: configuration of the run: its `text_encoder`, and `codes` written beforehand.
        generator: configuration of the generator that is to be trained.

    Raises:
        UserError: if one of the two is there without the other.
    """
    config = run.get("text_encoder")
    if config is None:
        if reads_text(generator) and run["codes"]["path"] is None:
            raise UserError(
                "This generator reads text: choose its encoder with text_encoder=minilm, or "
                "text_encoder=pretrained text_encoder.path=DIR."
            )
        return None
    if not reads_text(generator):
        raise UserError(
            "This generator reads no text: leave text_encoder out, or choose one that does, such "
            "as generator=quickstart_text."
        )
    return build(config, trust=True)


def reader_for(
    codes: CodeDataset, generator: Mapping[str, Any], *, trust: bool = False
) -> TextReader | None:
    """Return what reads texts for a generator trained on these codes, None if it reads none.

    Args:
        codes: their manifest says how to build the encoder.
        generator: configuration of the generator.
        trust: allow encoders that are not argen's own.

    Raises:
        UserError: if it does and the codes have no text features.
    """
    if not reads_text(generator):
        return None
    if codes.text is None:
        raise UserError(
            f"This generator reads text, but the codes in {codes.directory} have no text features: "
            "write them again with argen tokenize ... text_encoder=minilm (or pretrained)."
        )
    source = str(codes.directory / "manifest.json")
    return TextReader(codes.text["encoder"], trust=trust, source=source)


def shown_texts(source: ImageSource, *, each: int = 4) -> list[str]:
    """Return the captions that grids are drawn for: some learnt ones, then some held-out ones."""
    shown = []
    for images in (source.train, source.val):
        captions = list(dict.fromkeys(captions_of(source, images)))
        shown += captions[:: max(1, len(captions) // each)][:each]
    return shown


def evaluation_prompts(
    pipe: Pipeline, source: ImageSource | None, count: int
) -> tuple[list[int] | list[str], Tensor]:
    """Return what to sample for a score, and the class of each: classes or training captions.

    Each occurs equally often, counts differing by one at most, and in an order in which every run
    of images is balanced; see `argen.evaluation.label_order`. The prompts are the model's classes,
    the labels the data's classes of the same names.

    Raises:
        UserError: if the model reads text and there are no captions, or the data has other classes.
    """
    assert pipe.generator is not None
    if not isinstance(pipe.generator.conditioner, TextConditioner):
        classes = len(pipe.labels("all"))
        ids = balanced_labels(count, classes)
        if source is None:
            return ids.tolist(), ids
        places = match_classes(pipe.class_names, source.classes, count=classes)
        return ids.tolist(), torch.tensor(places)[ids]
    if source is None:
        raise UserError(
            "This model draws from text, and a score asks it for the captions of its training "
            "images: say where they are, e.g. data=folder data.path=DIR data.captions=FILE."
        )
    captions = captions_of(source, source.train)
    # Training images are sorted by class, so the order of their captions is not that of the file.
    picked = (torch.arange(count) * len(captions) // count)[spread_order(count)]
    return [captions[i] for i in picked.tolist()], source.train.labels[picked]


def text_arrays(text: TextEncoder) -> dict[str, Extra]:
    """Return the arrays that each image has in code shards for its caption."""
    T, F = text.spec.length, text.spec.dim
    return {"text": Extra((T, F), "float16"), "text_mask": Extra((T,), "bool")}


def about_text(text: TextEncoder, captions: Sequence[str]) -> dict[str, Any]:
    """Return what the manifest of code shards says of them."""
    return {
        "spec": text.spec.to_dict(),
        "encoder": TextReader(text.config, trust=True).config,  # type: ignore[arg-type]
        "captions": hashlib.sha256("\n".join(captions).encode()).hexdigest(),
    }


def encode_captions(
    text: TextEncoder, captions: Sequence[str], batch_size: int
) -> dict[str, Tensor]:
    """Return the arrays of N captions, (N, T, F) and (N, T)."""
    starts = range(0, len(captions), batch_size)
    parts = [text(captions[start : start + batch_size]) for start in starts]
    return {
        "text": torch.cat([part.features_BTF.cpu() for part in parts]),
        "text_mask": torch.cat([part.mask_BT.cpu() for part in parts]),
    }
