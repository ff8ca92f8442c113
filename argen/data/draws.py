"""Which sample comes next, and with which random numbers: a stream that can be resumed exactly.

A training stream is a pure function of (seed, position). Position p lies in epoch p // N of N
samples, each epoch is a permutation of all samples, and epochs are joined end to end, so no batch
is short and no sample is seen twice before all were seen once. Position p goes to rank
p % world_size. Nothing depends on the number of workers or on where a run was interrupted.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import Sampler

from argen.errors import UserError


class SampleRequest(NamedTuple):
    """One request to a data set.

    Attributes:
        index: which sample, in [0, N).
        seed: key of this visit's random augmentation; None for none.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    seed: int | None


def as_request(item: SampleRequest | int) -> SampleRequest:
    """Return `item` as a `SampleRequest`; a plain index means: not augmented."""
    return item if isinstance(item, SampleRequest) else SampleRequest(int(item), None)


def hash_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part."""
    text = "/".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def pick(seed: int, n: int) -> int:
    """Return a number in [0, n) that depends on `seed` alone."""
    return int(random.Random(seed).random() * n)


class RequestSampler(Sampler[SampleRequest]):
    """Shuffled, distributed, resumable stream of `SampleRequest`s for any map-style data set.

    Give it to `torchdata.stateful_dataloader.StatefulDataLoader` as `sampler`; the loader's own
    `state_dict` then resumes in mid-stream. The saved state is the position over all ranks, the
    same on each of them, so the state of rank 0 restores every rank.

    Args:
        num_samples: size N of the data set.
        seed: names the order and the augmentations.
        shuffle: a new permutation each epoch, else 0, 1, ..., N-1 again and again.
        rank: which of the `world_size` processes this is.
        world_size: how many processes share the stream.
        num_draws: requests of this rank, e.g. steps * batch size; None for an endless stream.
        augment: give every request a seed; without, `SampleRequest.seed` is None.

    Raises:
        UserError: when there is nothing to draw from, or a number makes no sense.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        num_draws: int | None = None,
        augment: bool = True,
    ) -> None:
        if num_samples < 1:
            raise UserError("The data set is empty: there is nothing to draw samples from.")
        if world_size < 1 or not 0 <= rank < world_size:
            raise UserError(f"rank={rank} must lie in [0, world_size={world_size}).")
        if num_draws is not None and num_draws < 0:
            raise UserError(f"num_draws={num_draws} must be at least 0, or None for no end.")
        self.num_samples = num_samples
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.num_draws = num_draws
        self.augment = augment
        self._pass = 0
        self._resume: int | None = None
        self._latest: RequestIterator | None = None
        self._order: tuple[int, torch.Tensor] | None = None

    @classmethod
    def one_pass(cls, num_samples: int, *, rank: int = 0, world_size: int = 1) -> RequestSampler:
        """Every sample exactly once, in order, not augmented; ranks differ by one at most."""
        share = max(0, -(-(num_samples - rank) // world_size))
        return cls(
            num_samples,
            shuffle=False,
            rank=rank,
            world_size=world_size,
            num_draws=share,
            augment=False,
        )

    def draw_at(self, position: int) -> SampleRequest:
        """Return the request at a global position (over all ranks and epochs)."""
        epoch, place = divmod(position, self.num_samples)
        if self.shuffle:
            if self._order is None or self._order[0] != epoch:
                generator = torch.Generator().manual_seed(hash_seed("order", self.seed, epoch))
                self._order = (epoch, torch.randperm(self.num_samples, generator=generator))
            place = int(self._order[1][place])
        return SampleRequest(
            place, hash_seed("draw", self.seed, position) if self.augment else None
        )

    def set_epoch(self, epoch: int) -> None:
        """Let pass `epoch` over a bounded stream go on where pass `epoch - 1` ended."""
        self._pass = epoch

    def bounds(self) -> tuple[int, int | None]:
        """Return the global positions [start, end) of the current pass."""
        if self.num_draws is None:
            return 0, None
        length = self.num_draws * self.world_size
        return self._pass * length, (self._pass + 1) * length

    def __iter__(self) -> RequestIterator:
        start, _ = self.bounds()
        if self._resume is not None:
            start, self._resume = self._resume, None
        self._latest = RequestIterator(self, start)
        return self._latest

    def __len__(self) -> int:
        if self.num_draws is None:
            raise TypeError("This stream has no end; give num_draws for a bounded one.")
        return self.num_draws

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last request that the newest iterator gave out."""
        if self._resume is not None:
            return self._state(self._resume)
        return self._latest.state_dict() if self._latest else self._state(self.bounds()[0])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iterator start at a saved position.

        Raises:
            UserError: when the state belongs to another data set or seed.
        """
        self._resume = self._position(state)

    def _state(self, position: int) -> dict[str, Any]:
        return {
            "position": position,
            "pass": self._pass,
            "num_samples": self.num_samples,
            "seed": self.seed,
        }

    def _position(self, state: dict[str, Any]) -> int:
        for key, now in (("num_samples", self.num_samples), ("seed", self.seed)):
            if state[key] != now:
                raise UserError(
                    f"The data stream cannot be resumed: {key} was {state[key]}, now it is {now}. "
                    f"Restore the data and the seed, or start a new run in another directory."
                )
        self._pass = int(state["pass"])
        return int(state["position"])


class RequestIterator(Iterator[SampleRequest]):
    """Iterator of a `RequestSampler` that knows its own position, as torchdata's loader needs."""

    def __init__(self, sampler: RequestSampler, position: int) -> None:
        self.sampler = sampler
        self.position = position

    def __iter__(self) -> RequestIterator:
        return self

    def __next__(self) -> SampleRequest:
        ours = self.position + (self.sampler.rank - self.position) % self.sampler.world_size
        end = self.sampler.bounds()[1]
        if end is not None and ours >= end:
            raise StopIteration
        # A whole round, not `ours + 1`: so every rank saves the same position.
        self.position += self.sampler.world_size
        return self.sampler.draw_at(ours)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next round, the same on every rank."""
        return self.sampler._state(self.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a saved position."""
        self.position = self.sampler._position(state)


# Names before 0.2, taken until 0.3.
Draw, as_draw, DrawSampler = SampleRequest, as_request, RequestSampler
