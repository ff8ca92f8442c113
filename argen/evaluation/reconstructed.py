"""Images of a data set, through a tokenizer and back.

Shapes: B batch, H W pixels.
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
from argen.runtime.distributed import rank_and_world_size

Images = ImageDataset | ConcatDataset


def side(source: ImageSource, split: str) -> Images:
    """Return the images of `val`, `train` or `all`; raise `UserError` for another name."""
    if split not in ("val", "train", "all"):
        raise UserError(f"Unknown split={split}; use val, train or all.")
    if split == "all":
        return ConcatDataset([source.train, source.val])
    return source.val if split == "val" else source.train


def originals(dataset: Images, batch_size: int) -> Iterator[Tensor]:
    """Yield the images in order, bare, (B, 3, H, W) in [-1, 1]."""
    total = len(dataset)
    for start in range(0, total, batch_size):
        stop = min(start + batch_size, total)
        yield torch.stack([dataset[i]["image"] for i in range(start, stop)])


@torch.inference_mode()
def reconstructions(
    pipe: Pipeline, dataset: Images, paired: Paired, *, batch_size: int = 32
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield numbers (B,) and reconstructions (B, 3, H, W) of this rank's share of the images."""
    rank, ranks = rank_and_world_size()
    total = len(dataset)
    for start in range(rank * batch_size, total, ranks * batch_size):
        index = torch.arange(start, min(start + batch_size, total))
        images = torch.stack([dataset[int(i)]["image"] for i in index])
        codes = pipe.encode(images)
        decoded = pipe.decode(codes).float().cpu()
        paired.update(images, decoded, codes.cpu())
        yield index, decoded
