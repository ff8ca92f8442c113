"""The key/value cache: an explicit, static buffer with a length counter per row.

The cache is never module state. A pass writes a window of new tokens, then attends over the slots
below its reach. Nothing is ever erased: a rolled-back slot is overwritten before any query can see
it, because queries see only slots up to their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Where the tokens of one pass go.

    Attributes:
        start: first slot, one number when all rows agree, else a long tensor (R,).
        n: number of new tokens.
        reach: number of slots the pass may look at: the largest start + n, known on the host.
        at: the slots themselves, (n,), where they are scattered.
    """

    start: int | Tensor
    n: int
    reach: int
    at: Tensor | None = None

    def slots(self, device: torch.device) -> Tensor:
        """Return the slots of the new tokens, (n,) or (R, n)."""
        if self.at is not None:
            return self.at
        steps = torch.arange(self.n, device=device)
        return self.start + steps if isinstance(self.start, int) else self.start[:, None] + steps


class KVCache:
    """Keys and values, one tensor (R rows, kv heads, S slots, head width) a layer.

    Compilers that make writes explicit would copy one tensor of all layers at every layer.

    Args:
        layers: number of layers.
        rows: number of rows R; guided sampling uses two rows an image.
        heads: number of key/value heads.
        slots: number of slots S, allocated once.
        head_dim: width of a head.
        dtype: type of the stored keys and values.
        device: where they live.
    """

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        heads: int,
        slots: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (rows, heads, slots, head_dim)
        # Zeros, not empty memory: a masked slot still enters the matmul, as 0 times a number.
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
            for _ in range(2)
        )

    @property
    def slots(self) -> int:
        """Number of slots S."""
        return self.keys[0].shape[2]

    def write(
        self, layer: int, k_RHnd: Tensor, v_RHnd: Tensor, window: Window
    ) -> tuple[Tensor, Tensor]:
        """Store a window and return the keys and values (R, heads, reach, head width) below it."""
        keys, values = self.keys[layer], self.values[layer]
        if window.at is not None:
            keys[:, :, window.at] = k_RHnd.to(keys.dtype)
            values[:, :, window.at] = v_RHnd.to(values.dtype)
        elif isinstance(window.start, int):
            keys[:, :, window.start : window.start + window.n] = k_RHnd
            values[:, :, window.start : window.start + window.n] = v_RHnd
        else:
            index = window.slots(keys.device)[:, None, :, None].expand_as(k_RHnd)
            keys.scatter_(2, index, k_RHnd.to(keys.dtype))
            values.scatter_(2, index, v_RHnd.to(values.dtype))
        return keys[:, :, : window.reach], values[:, :, : window.reach]

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy slots `source` (R, n) to slots `target` (R, n), in every layer."""
        for stored in (*self.keys, *self.values):
            shape = (-1, stored.shape[1], -1, stored.shape[3])
            kept = stored.gather(2, source[:, None, :, None].expand(shape))
            stored.scatter_(2, target[:, None, :, None].expand(shape), kept)

    def gather(self, rows: Tensor) -> None:
        """Reorder or duplicate rows: row i becomes the old row `rows[i]`."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]


class ReadOnlyView(KVCache):
    """A read-only view of a cache: new tokens attend over it and are not stored.

    Args:
        cache: whose keys and values are read.
    """

    def __init__(self, cache: KVCache) -> None:
        self.keys, self.values = cache.keys, cache.values

    def write(
        self, layer: int, k_RHnd: Tensor, v_RHnd: Tensor, window: Window
    ) -> tuple[Tensor, Tensor]:
        """Return the keys and values below the window's start, followed by the new ones.

        Raises:
            ValueError: if the rows start at different slots.
        """
        if not isinstance(window.start, int):
            raise ValueError("A read-only view of a cache needs one start slot for all rows.")
        keys = self.keys[layer][:, :, : window.start].to(k_RHnd.dtype)
        values = self.values[layer][:, :, : window.start].to(v_RHnd.dtype)
        return torch.cat((keys, k_RHnd), dim=2), torch.cat((values, v_RHnd), dim=2)
