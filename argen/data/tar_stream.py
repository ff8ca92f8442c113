"""The images of tar shards as an endless stream, for training on sets that do not fit a disk.

webdataset opens and reads the shards; who reads which, in what order, is decided here, because its
own splitters look for the rank in places that spawned workers lack, and its resampling cannot be
repeated.
"""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from argen.data.draws import hash_seed
from argen.data.tar_members import image_in, label_in
from argen.data.transforms import Augment, center_crop
from argen.errors import UserError
from argen.images.files import UNREADABLE, decode_image
from argen.images.pixels import Size, to_float

log = logging.getLogger(__name__)
READERS = 1024  # worker processes of one rank that can count damage apart
FEW = 1000  # a share of fewer images than this says nothing
PLACES = 2**24  # numbers kept for the images of one shard


class TarStream(IterableDataset[dict[str, Tensor]]):
    """Gives images of tar shards for ever, each reader its own shards of every epoch.

    Items are those of `ImageDataset`; `index` numbers the shard and the place in it, and
    `name_of` gives it back as text. In each epoch the shards are shuffled and dealt out to all
    readers (ranks times workers); with more readers than shards, readers share one and take turns
    at its images. A reader's order depends on the seed, `restart`, its rank and its number, and
    not on how the workers were started.

    Args:
        shards: paths or addresses that webdataset opens.
        classes: class names, in the order of the labels.
        size: (H, W) of the images.
        unconditional: every image is of the one class.
        augment: what is done to the pixels.
        buffer: images that are mixed; 1 keeps the order of the shards.
        max_bad_fraction: more damaged images or shards than this share stop the run.
        cache_dir: where shards from elsewhere are kept.
        seed: names the order.
    """

    def __init__(
        self,
        shards: Sequence[str],
        classes: Sequence[str],
        size: Size,
        *,
        unconditional: bool = False,
        augment: Augment | None = None,
        buffer: int = 1000,
        max_bad_fraction: float = 0.01,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        self.shards, self.classes, self.size = list(shards), tuple(classes), size
        self.unconditional, self.augment = unconditional, augment
        self.buffer, self.max_bad_fraction = buffer, max_bad_fraction
        self.cache_dir, self.seed = cache_dir, seed
        self.rank, self.world_size, self.restart = 0, 1, 0
        # One row a reader, so that no two processes write the same number: seen, damaged.
        self._counts = torch.zeros(READERS, 2, dtype=torch.long).share_memory_()

    def dealt_to(self, rank: int, world_size: int, *, restart: int = 0) -> TarStream:
        """Say whose share this is, and from which step on the run began anew."""
        self.rank, self.world_size, self.restart = rank, world_size, restart
        return self

    @property
    def bad_count(self) -> int:
        """How many damaged images and shards were met so far, in all workers of this rank."""
        return int(self._counts[:, 1].sum())

    def name_of(self, index: int) -> str:
        """Return the shard and the place in it that an item's `index` stands for."""
        return f"{self.shards[index // PLACES]}, image {index % PLACES}"

    def share(self, epoch: int, reader: int, readers: int) -> Iterator[tuple[int, int, int]]:
        """Yield (shard, turn, of how many): what one reader of an epoch takes, in order."""
        order = list(range(len(self.shards)))
        random.Random(hash_seed("shards", self.seed, self.restart, epoch)).shuffle(order)
        if readers <= len(order):
            yield from ((shard, 0, 1) for shard in order[reader::readers])
            return
        turn, place = divmod(reader, len(order))
        sharing = len(range(place, readers, len(order)))
        yield order[place], turn, sharing

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        from webdataset.filters import shuffle

        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        reader, readers = self.rank * workers + number, self.world_size * workers
        key, counts = (self.seed, self.restart, reader), self._counts[number % READERS]
        samples: Any = self._endless(reader, readers, counts)
        if self.buffer > 1:  # files are mixed, not pixels, which take more memory
            rng = random.Random(hash_seed("mix", *key))
            samples = shuffle(self.buffer, initial=min(100, self.buffer), rng=rng)(samples)
        count = 0
        for index, sample in samples:
            counts[0] += 1
            seed = hash_seed("augment", *key, count)
            read = self._decoded(sample, counts, seed)
            if read is None:
                continue
            pixels, label = read
            if self.augment is not None:
                pixels = self.augment(pixels, seed)
            count += 1
            yield {
                "image": to_float(pixels),
                "label": torch.tensor(label),
                "index": torch.tensor(index),
            }

    def _endless(
        self, reader: int, readers: int, counts: Tensor
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        epoch = 0
        while True:
            found = False
            for shard, turn, sharing in self.share(epoch, reader, readers):
                for place, sample in enumerate(self._samples(shard, counts)):
                    if place % sharing == turn and image_in(sample) is not None:
                        found = True
                        yield shard * PLACES + place, sample
            if not found and epoch:
                raise UserError(
                    f"A loader process found no image in its share of {len(self.shards)} shards: "
                    "write smaller shards, or use fewer workers."
                )
            epoch += 1

    def _samples(self, shard: int, counts: Tensor) -> Iterator[dict[str, Any]]:
        """Yield what the keys of one shard hold: bytes by extension."""
        from webdataset.cache import FileCache
        from webdataset.tariterators import tarfile_to_samples

        url = self.shards[shard]

        too_many: list[UserError] = []

        def note(error: Exception) -> bool:
            # Raised below: webdataset would catch what is raised in here, and ask again.
            try:
                self._note_bad(f"shard {url}", error, counts)
            except UserError as stop:
                too_many.append(stop)
            return not too_many

        try:
            local = FileCache(self.cache_dir).get_file(url) if self.cache_dir else url
        except (OSError, ValueError) as error:
            note(error)
        else:
            yield from tarfile_to_samples(handler=note)(iter([{"url": local}]))
        if too_many:
            raise too_many[0]

    def _decoded(
        self, sample: dict[str, Any], counts: Tensor, seed: int
    ) -> tuple[Tensor, int] | None:
        """Return pixels (3, H, W) and label, or None for a damaged image, which is noted."""
        image = sample[str(image_in(sample))]
        try:
            crop = self.augment.crop if self.augment else None
            transform = center_crop if crop is None else partial(crop, seed=seed)
            pixels = decode_image(io.BytesIO(image), self.size, transform)
            label = label_in(sample, self.classes, unconditional=self.unconditional)
        except UNREADABLE as error:
            self._note_bad(f"{sample['__key__']} of {sample['__url__']}", error, counts)
            return None
        return pixels, label

    def _note_bad(self, what: str, error: Exception, counts: Tensor) -> None:
        counts[1] += 1
        log.warning("Skipped %s: %s", what, error)
        seen, bad = self._counts.sum(0).tolist()
        if bad > max(self.max_bad_fraction * max(seen, FEW), 1 if self.max_bad_fraction else 0):
            raise UserError(
                f"{bad} images or shards of {seen} read so far are damaged, more than "
                f"max_bad_fraction={self.max_bad_fraction:g} allows; the last was {what} "
                f"({error}). Write the shards again, or raise the limit."
            )
