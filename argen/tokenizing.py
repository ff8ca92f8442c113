"""Turn a data set into code shards with a trained tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from argen.data.code_writer import CodeWriter
from argen.data.codes import CodeDataset
from argen.data.draws import Draw, hash_seed
from argen.data.images import ImageDataset, ImageSource
from argen.model_directory import weights_fingerprint
from argen.ranks import first, place, wait
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

    Returns:
        the readable code sets by split.
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
        )
        missing = list(writer.missing())
        wait()  # all ranks have read the same list before one of them writes
        rank, ranks = place()
        for shard in missing[rank::ranks]:
            index = range(shard.start, shard.stop)
            codes = torch.stack(
                [
                    _encode(tokenizer, pictures, index, view, batch_size, seed)
                    for view in range(len(names))
                ],
                dim=1,
            )
            writer.write(shard, codes, pictures.labels[list(index)], torch.tensor(list(index)))
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
) -> Tensor:
    """Return the codes of one view of some pictures."""
    device = next(tokenizer.parameters()).device
    parts = []
    for start in range(index.start, index.stop, batch_size):
        batch = range(start, min(start + batch_size, index.stop))
        draws = [Draw(i, hash_seed("code view", seed, view, i) if view else None) for i in batch]
        images = torch.stack([pictures[draw]["image"] for draw in draws])
        parts.append(tokenizer.encode(images.to(device)).cpu())
    return torch.cat(parts)
