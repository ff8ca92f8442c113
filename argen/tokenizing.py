"""Turn a data set into code shards with a trained tokenizer, and its captions into features."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from argen.data.code_writer import CodeWriter
from argen.data.codes import CodeDataset
from argen.data.draws import Draw, hash_seed
from argen.data.images import ImageDataset, ImageSource
from argen.data.shards import Extra
from argen.errors import UserError
from argen.model_directory import weights_fingerprint
from argen.ranks import first, place, wait
from argen.text.base import TextEncoder
from argen.tokenizers.base import Tokenizer


@torch.inference_mode()
def write_codes(
    tokenizer: Tokenizer,
    source: ImageSource,
    directory: Path | str,
    *,
    views: int = 1,
    batch_size: int = 64,
    shard_size: int = 4096,
    seed: int = 0,
    text: TextEncoder | None = None,
) -> dict[str, CodeDataset]:
    """Write `train` and `val` code shards; finished shards of an earlier run are kept.

    The ranks of a process group deal the shards out among them; the files are the same.

    Args:
        tokenizer: encodes, on the device where it is.
        source: the pictures.
        directory: gets one sub-directory a split.
        views: stored versions of each training picture: the picture itself, then augmented ones.
        batch_size: pictures encoded at once.
        shard_size: pictures a shard.
        seed: names the augmentations.
        text: also store features of the captions, `text` (T, F) and `text_mask` (T,).

    Returns:
        the readable code sets by split.

    Raises:
        UserError: if text is asked for and the pictures have no captions.
    """
    tokenizer.eval()
    fingerprint = weights_fingerprint(tokenizer)
    manifest = source.manifest()
    done = {}
    for split, pictures in (("train", source.train), ("val", source.val)):
        augmented = views - 1 if split == "train" and pictures.augment is not None else 0
        names = ["plain", *(f"augmented-{v}" for v in range(1, augmented + 1))]
        writer = CodeWriter(
            Path(directory) / split,
            spec=tokenizer.spec,
            tokenizer_fingerprint=fingerprint,
            classes=source.classes,
            transform=str(manifest.get("transform", "")),
            views=names,
            num_items=len(pictures),
            shard_size=shard_size,
            source=manifest,
            extras=None if text is None else _text_arrays(text),
            text=None if text is None else _about_text(text, captions_of(source, pictures)),
        )
        missing = list(writer.missing())
        wait()  # all ranks have read the same list before one of them writes
        rank, ranks = place()
        for shard in missing[rank::ranks]:
            index = range(shard.start, shard.stop)
            encoded = [
                _encode(tokenizer, pictures, index, view, batch_size, seed)
                for view in range(len(names))
            ]
            extras = {}
            if text is not None:
                captions, shown = captions_of(source, pictures), encoded[0][1]
                extras = _encode_text(text, [captions[i] for i in shown], batch_size)
            writer.write(
                shard,
                torch.stack([codes for codes, _ in encoded], dim=1),
                pictures.labels[list(index)],
                torch.tensor(list(index)),
                extras,
            )
        wait()
        if first() and not (writer.directory / "manifest.json").exists():
            writer.finish()
        wait()
        done[split] = CodeDataset(directory, split=split)
    return done


def _encode(
    tokenizer: Tokenizer,
    pictures: ImageDataset,
    index: range,
    view: int,
    batch_size: int,
    seed: int,
) -> tuple[Tensor, list[int]]:
    """Return the codes of one view of some pictures, and which pictures were shown.

    Those that cannot be read have stand-ins.
    """
    device = next(tokenizer.parameters()).device
    parts, shown = [], []
    for start in range(index.start, index.stop, batch_size):
        batch = range(start, min(start + batch_size, index.stop))
        draws = [Draw(i, hash_seed("code view", seed, view, i) if view else None) for i in batch]
        items = [pictures[draw] for draw in draws]
        images = torch.stack([item["image"] for item in items])
        parts.append(tokenizer.encode(images.to(device)).cpu())
        shown += [int(item["index"]) for item in items]
    return torch.cat(parts), shown


def captions_of(source: ImageSource, pictures: ImageDataset) -> list[str]:
    """Return the captions of one side of a data set.

    Raises:
        UserError: if it has none.
    """
    if pictures.captions is None:
        raise UserError(
            f"The pictures of {source.name} have no captions: with data=folder give "
            "data.captions=captions.csv (or .txt, .json, or beside); data=emoji has its own."
        )
    return pictures.captions


def _text_arrays(text: TextEncoder) -> dict[str, Extra]:
    T, F = text.spec.length, text.spec.dim
    return {"text": Extra((T, F), "float16"), "text_mask": Extra((T,), "bool")}


def _about_text(text: TextEncoder, captions: list[str]) -> dict[str, Any]:
    """Return what the manifest says of text features."""
    return {
        "spec": text.spec.to_dict(),
        "encoder": _encoder_config(text),
        "captions": hashlib.sha256("\n".join(captions).encode()).hexdigest(),
    }


def _encoder_config(text: TextEncoder) -> dict[str, Any]:
    """Return how to build a text encoder again, from any directory."""
    config: dict[str, Any] = dict(text.config)  # type: ignore[arg-type]
    for key in ("path", "tokenizer"):
        if config.get(key):
            config[key] = str(Path(config[key]).expanduser().resolve())
    return config


def _encode_text(text: TextEncoder, captions: list[str], batch_size: int) -> dict[str, Tensor]:
    starts = range(0, len(captions), batch_size)
    parts = [text(captions[start : start + batch_size]) for start in starts]
    return {
        "text": torch.cat([part.features_BTF.cpu() for part in parts]),
        "text_mask": torch.cat([part.mask_BT.cpu() for part in parts]),
    }
