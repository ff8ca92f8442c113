"""Turn a data set into code shards with a trained tokenizer, and its captions into features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from argen.build import build
from argen.data.code_writer import CodeWriter
from argen.data.codes import CodeDataset
from argen.data.images import ImageSource
from argen.data.view_reader import ViewReader
from argen.data.views import Views, larger_size, views_of
from argen.errors import UserError
from argen.pipeline.model_directory import weights_fingerprint
from argen.recipes.captions import about_text, captions_of, encode_captions, text_arrays
from argen.runtime.distributed import barrier, is_rank_zero, rank_and_world_size
from argen.text.base import TextEncoder
from argen.tokenizers.base import Tokenizer


@torch.inference_mode()
def write_codes(
    tokenizer: Tokenizer,
    source: ImageSource,
    directory: Path | str,
    *,
    views: Views = 1,
    larger: ImageSource | None = None,
    moments: bool = True,
    batch_size: int = 64,
    shard_size: int = 4096,
    workers: int = 0,
    seed: int = 0,
    text: TextEncoder | None = None,
) -> dict[str, CodeDataset]:
    """Write `train` and `val` code shards; finished shards of an earlier run are kept.

    The ranks of a process group deal the shards out among them; the files are the same.

    Args:
        tokenizer: encodes, on the device where it is.
        source: the images.
        directory: gets one sub-directory a split.
        views: stored versions of each training image, see `views_of`.
        larger: the same images with more pixels, which ten crops are taken from.
        moments: store mean and deviation of the code posterior where the tokenizer has one.
        batch_size: images encoded at once.
        shard_size: images a shard.
        workers: threads that read images while others are encoded.
        seed: names the augmentations.
        text: also store features of the captions, `text` (T, F) and `text_mask` (T,).

    Returns:
        the readable code sets by split.

    Raises:
        UserError: if text is asked for and the images have no captions.
    """
    tokenizer.eval()
    fingerprint = weights_fingerprint(tokenizer)
    manifest = source.manifest()
    if views == "ten_crop" and larger is None:
        raise UserError("Ten crops need the images with more pixels: give larger.")
    moments = moments and tokenizer.has_moments
    done = {}
    for split in ("train", "val"):
        images = source.train if split == "train" else source.val
        chosen = views_of(views, source, split)
        writer = CodeWriter(
            Path(directory) / split,
            spec=tokenizer.spec,
            tokenizer_fingerprint=fingerprint,
            classes=source.classes,
            transform=_transform(source, larger if views == "ten_crop" else None),
            views=[view.name for view in chosen],
            num_items=len(images),
            shard_size=shard_size,
            channels="mean_std" if moments else "codes",
            source=manifest,
            extras=None if text is None else text_arrays(text),
            text=None if text is None else about_text(text, captions_of(source, images)),
        )
        missing = list(writer.missing())
        barrier()  # all ranks have read the same list before one of them writes
        rank, ranks = rank_and_world_size()
        bigger = larger.train if larger else None
        reader = ViewReader(images, bigger, batch_size=batch_size, workers=workers, seed=seed)
        for shard in missing[rank::ranks]:
            index = range(shard.start, shard.stop)
            encoded = [_encode(tokenizer, reader.read(index, view), moments) for view in chosen]
            extras = {}
            if text is not None:
                captions, shown = captions_of(source, images), encoded[0][1]
                extras = encode_captions(text, [captions[i] for i in shown], batch_size)
            writer.write(
                shard,
                torch.stack([codes for codes, _ in encoded], dim=1),
                images.labels[list(index)],
                torch.tensor(list(index)),
                extras,
            )
        reader.close()
        barrier()
        if is_rank_zero() and not (writer.directory / "manifest.json").exists():
            writer.finish()
        barrier()
        done[split] = CodeDataset(directory, split=split)
    return done


def larger_source(
    data: Mapping[str, Any], source: ImageSource, views: Views, crop: float
) -> ImageSource | None:
    """Return the images that ten crops are taken from, None for other views.

    Args:
        data: configuration of the images.
        source: the images.
        views: as in `write_codes`.
        crop: see `larger_size`.
    """
    if views != "ten_crop":
        return None
    return build({**data, "image_size": larger_size(source.image_size, crop)}, trust=True)


def _transform(source: ImageSource, larger: ImageSource | None) -> str:
    if larger is None:
        return source.transform
    return f"{source.transform}; ten crops of {larger.image_size[0]}x{larger.image_size[1]}"


def _encode(
    tokenizer: Tokenizer, batches: Iterator[tuple[Tensor, list[int]]], moments: bool
) -> tuple[Tensor, list[int]]:
    """Return codes, or means and deviations of their posteriors, and which images were shown."""
    device = next(tokenizer.parameters()).device
    encode = tokenizer.moments if moments else tokenizer.encode
    parts, shown = [], []
    for images, numbers in batches:
        parts.append(encode(images.to(device)).cpu())
        shown += numbers
    return torch.cat(parts), shown
