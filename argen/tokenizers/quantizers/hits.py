"""How often each code is used, scale by scale: a moving average over training steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from argen.errors import UserError
from argen.layers.collective import all_sum, world_size

WARM_UP = 100  # updates after which the average slows down from 0.1 to 0.01 a step
RARE = 0.08  # share of the even rate below which a code counts as unused


class HitCounter(nn.Module):
    """Moving average of the hits of each code, summed over all processes (VAR, arXiv 2404.02905).

    Args:
        scales: number of scales K, counted apart.
        codes: number of codes V.
        counter: what the warm-up counts: training steps (`step`), or every scale of every step
            (`scale`), as the published code does; only the coarsest scale then starts from its
            first counts, and the slow average begins after 100 / K steps.
    """

    def __init__(self, scales: int, codes: int, *, counter: str = "step") -> None:
        super().__init__()
        if counter not in ("step", "scale"):
            raise UserError(f"Unknown hit counter {counter!r}; use 'step' or 'scale'.")
        self.counter = counter
        self.average: Tensor
        self.updates: Tensor
        self.register_buffer("average", torch.zeros(scales, codes))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, ids: Sequence[Tensor]) -> None:
        """Take in the ids of one step, one tensor a scale."""
        K, V = self.average.shape
        flat = torch.cat([k * V + i.flatten() for k, i in enumerate(ids)])
        counts = self.average.new_zeros(K * V, dtype=torch.float32)
        counts = all_sum(counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.float32)))
        counts = counts.view(K, V)
        seen = self.updates.expand(K)
        if self.counter == "scale":
            seen = seen * K + torch.arange(K, device=seen.device)
        fresh = torch.where(seen == 0, 1.0, torch.where(seen < WARM_UP, 0.1, 0.01))[:, None]
        kept = torch.where(seen == 0, 0.0, torch.where(seen < WARM_UP, 0.9, 0.99))[:, None]
        self.average.copy_(self.average.float() * kept + counts * fresh)
        self.updates += 1

    def usage(self, vectors: int | Sequence[int]) -> Tensor:
        """Return the share in [0, 1] of codes in use at each scale, (K,).

        A code is in use when its average is at least 0.08 of what an even use of all codes by
        `vectors` a step, over all processes, would give. The published statistic counts the whole
        latent map for every scale, under which coarse scales can never reach 1.

        Args:
            vectors: one number, or one a scale.
        """
        margin = torch.as_tensor(vectors, device=self.average.device) * (
            RARE / self.average.shape[1]
        )
        return (self.average >= margin.expand(len(self.average))[:, None]).float().mean(-1)

    def perplexity(self) -> Tensor:
        """Return exp(entropy) of the average use of codes at each scale, (K,)."""
        p = self.average.float() / self.average.float().sum(-1, keepdim=True).clamp(min=1e-12)
        return torch.special.entr(p).sum(-1).exp()

    def metrics(self, vectors: Sequence[int]) -> dict[str, Tensor]:
        """Return usage and perplexity by scale, to log.

        Args:
            vectors: vectors of one step at each scale, in this process.
        """
        usage = self.usage([n * world_size() for n in vectors])
        perplexity = self.perplexity()
        return {
            f"{name}/scale_{k:02d}": value
            for name, values in (("usage", usage), ("perplexity", perplexity))
            for k, value in enumerate(values)
        }
