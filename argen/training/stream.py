"""Batches for the two stages: an exactly resumable training stream and a plain validation pass."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from argen.data.draws import DrawSampler
from argen.data.tar_stream import TarStream
from argen.errors import UserError


class Stream(LightningDataModule):
    """Feeds a fixed number of steps, all epochs joined into one stream.

    Args:
        train: drawn from with shuffling and augmentation; a `TarStream` draws by itself.
        val: seen once each validation, in order.
        steps: optimiser steps of the whole run.
        batch_size: samples a step and rank.
        workers: loader processes; 0 loads in the training process.
        seed: names the order and the augmentations.
        overfit: draw the first so many training samples alone, without augmentation; 0 for all.

    Raises:
        UserError: a stream of shards is asked for its first samples.
    """

    def __init__(
        self,
        train: Dataset[Any],
        val: Dataset[Any],
        *,
        steps: int,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        overfit: int = 0,
    ) -> None:
        super().__init__()
        if overfit and isinstance(train, TarStream):
            raise UserError("fit.overfit needs samples by number: use data=folder in its place.")
        self.overfit = overfit
        self.train, self.val = train, val
        self.steps, self.batch_size, self.workers, self.seed = steps, batch_size, workers, seed
        self.accumulate = 1  # batches a step; `fit` sets it to the trainer's
        self.even = False  # whether all ranks must validate on as many samples

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _drawn_from(self) -> int:
        count = len(self.train)  # type: ignore[arg-type]
        return min(count, self.overfit or count)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the one long epoch."""
        rank, world_size = self._ranks()
        if isinstance(self.train, TarStream):
            # A stream has no place to go on from: a resumed run draws on in another order.
            begun = self.trainer.global_step if self.trainer else 0
            return DataLoader(
                self.train.dealt_to(rank, world_size, restart=begun),
                batch_size=self.batch_size,
                num_workers=self.workers,
                persistent_workers=self.workers > 0,
            )
        sampler = DrawSampler(
            self._drawn_from(),
            augment=not self.overfit,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            num_draws=self.steps * self.batch_size * self.accumulate,
        )
        return StatefulDataLoader(
            self.train,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            drop_last=True,
        )

    def samples_of(self, batch_idx: int, batch: Any) -> list[int] | list[str]:
        """Return the numbers of the samples in a batch of this rank, or their places in shards."""
        if isinstance(self.train, TarStream):
            return [self.train.name_of(index) for index in batch["index"].tolist()]
        rank, world_size = self._ranks()
        sampler = DrawSampler(self._drawn_from(), seed=self.seed)
        first = batch_idx * self.batch_size
        draws = range(first, first + self.batch_size)
        return [sampler.draw_at(draw * world_size + rank).index for draw in draws]

    def val_dataloader(self) -> StatefulDataLoader:
        """Return the loader of one validation pass."""
        rank, world_size = self._ranks()
        count = len(self.val)  # type: ignore[arg-type]
        if self.even:
            count -= count % world_size
        sampler = DrawSampler.one_pass(count, rank=rank, world_size=world_size)
        return StatefulDataLoader(
            self.val,
            batch_size=self.batch_size * 4,
            sampler=sampler,
            num_workers=min(1, self.workers),
        )
