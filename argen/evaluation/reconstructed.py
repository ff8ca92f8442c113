"""Pictures of a data set, through a tokenizer and back.

Letters: B batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from argen.data.images import ImageDataset, ImageSource
from argen.errors import UserError
from argen.evaluation.paired import Paired
from argen.pipeline import Pipeline
from argen.ranks import place

Pictures = ImageDataset | ConcatDataset


def side(source: ImageSource, split: str) -> Pictures:
    """Return the pictures of `val`, `train` or `all`; raise `UserError` for another name."""
    if split not in ("val", "train", "all"):
        raise UserError(f"Unknown split={split}; use val, train or all.")
    if split == "all":
        return ConcatDataset([source.train, source.val])
    return source.val if split == "val" else source.train


def originals(dataset: Pictures, batch_size: int) -> Iterator[Tensor]:
    """Yield the pictures in order, bare, (B, 3, H, W) in [-1, 1]."""
    total = len(dataset)
    for start in range(0, total, batch_size):
        stop = min(start + batch_size, total)
        yield torch.stack([dataset[i]["image"] for i in range(start, stop)])


@torch.inference_mode()
def reconstructions(
    pipe: Pipeline, dataset: Pictures, paired: Paired, *, batch_size: int = 32
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield numbers (B,) and reconstructions (B, 3, H, W) of this rank's share of the pictures."""
    rank, ranks = place()
    total = len(dataset)
    for start in range(rank * batch_size, total, ranks * batch_size):
        index = torch.arange(start, min(start + batch_size, total))
        images = torch.stack([dataset[int(i)]["image"] for i in index])
        codes = pipe.encode(images)
        decoded = pipe.decode(codes).float().cpu()
        paired.update(images, decoded, codes.cpu())
        yield index, decoded
