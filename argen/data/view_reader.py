"""Batches of one view of some images, read while the batch before is worked on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from argen.data.images import ImageDataset
from argen.data.views import View


class ViewReader:
    """Reads batches of images.

    Args:
        images: the data set.
        larger: the same with more pixels, for crops.
        batch_size: images a batch.
        workers: threads that read ahead; 0 reads when a batch is asked for.
        seed: names the augmentations.
    """

    def __init__(
        self,
        images: ImageDataset,
        larger: ImageDataset | None = None,
        *,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        self.images, self.larger = images, larger
        self.batch_size, self.seed = batch_size, seed
        self.pool = ThreadPoolExecutor(workers) if workers else None

    def read(self, index: range, view: View) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield images (B, 3, H, W) in order, and their numbers.

        An image that cannot be read has a stand-in, whose number stands for it.
        """

        def one(i: int) -> tuple[int, Tensor]:
            return view.of(i, self.images, self.larger, seed=self.seed)

        batches = [index[i : i + self.batch_size] for i in range(0, len(index), self.batch_size)]
        ahead: list[Future[tuple[int, Tensor]]] = []
        for batch, following in zip(batches, [*batches[1:], range(0)]):
            if self.pool is None:
                read = [one(i) for i in batch]
            else:
                now = ahead or [self.pool.submit(one, i) for i in batch]
                ahead = [self.pool.submit(one, i) for i in following]
                read = [future.result() for future in now]
            shown, images = zip(*read)
            yield torch.stack(images), list(shown)

    def close(self) -> None:
        """End the threads."""
        if self.pool is not None:
            self.pool.shutdown()
