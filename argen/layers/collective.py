"""Sums, draws and gathers over all processes; the plain value when there is only one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_sum(x: Tensor) -> Tensor:
    """Return the sum of `x` over all processes, without gradient."""
    x = x.detach()
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def all_mean(total: Tensor, count: int) -> Tensor:
    """Return the mean over all processes of what was summed over `count` items here.

    The value is global. The gradient is that of the local share, scaled so that the average over
    processes, which DistributedDataParallel takes, is the gradient of the global mean.

    Args:
        total: the local sum, any shape.
        count: number of local items; may differ between processes.
    """
    world = world_size()
    if world == 1:
        return total / count
    items = all_sum(total.new_tensor(float(count), dtype=torch.float64))
    share = total * (world / items).to(total.dtype)
    value = all_sum(total) / items.to(total.dtype)
    return share + (value - share).detach()


def from_rank_zero(x: Tensor) -> Tensor:
    """Return the first process's `x` on every process."""
    if world_size() > 1:
        x = x.clone()
        dist.broadcast(x, src=0)
    return x


def draw_rows(x_NC: Tensor, count: int) -> Tensor:
    """Return `count` rows drawn at random from all processes' rows, the same on each process.

    Every process gives an equal share; rows repeat only where there are fewer of them than asked.
    """
    world = world_size()
    share = -(-count // world)
    rows, device = x_NC.shape[0], x_NC.device
    order = torch.randperm(rows, device=device)
    if rows < share:
        order = torch.randint(rows, (share,), device=device)
    mine = x_NC.detach()[order[:share]].contiguous()
    if world == 1:
        return mine
    shares = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(shares, mine)
    # Interleaved, so that a count that is no multiple of the processes favours none of them.
    return torch.stack(shares, dim=1).flatten(0, 1)[:count]
