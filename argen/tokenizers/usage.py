"""How many codes are used, and how evenly: one place for training, evaluation and benchmarks.

Usage depends on the number of images: a batch cannot cover a large vocabulary. Collect over a
whole set, and report its size with the numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from argen.errors import UserError
from argen.layers.collective import all_sum
from argen.spec import CodeSpec

MAX_TABLE = 1 << 26  # largest histogram kept, in entries: 0.5 GB


def usage(counts: Tensor) -> Tensor:
    """Return the share of codes seen at least once, over the last axis of counts (..., V)."""
    return (counts > 0).double().mean(-1)


def entropy(counts: Tensor) -> Tensor:
    """Return the entropy in nats of counts (..., V); zero where nothing was counted."""
    shares = counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)
    return torch.special.entr(shares).sum(-1)


def perplexity(counts: Tensor) -> Tensor:
    """Return exp(entropy) of counts (..., V): how many equally used codes would be as diverse."""
    return entropy(counts).exp()


class CodeUsage:
    """Counts the codes of many batches, on all processes.

    Each sub-token of each segment has a histogram of its own. Bits are sub-tokens of two values.

    Args:
        spec: what the codes are; `continuous` codes cannot be counted.
        positions: also count each position apart, for `bits_per_image`, the sum over positions of
            the entropy of what stands there: an upper bound of the information in an image.
    """

    def __init__(self, spec: CodeSpec, *, positions: bool = False) -> None:
        if spec.kind == "continuous":
            raise UserError("Continuous codes cannot be counted.")
        self.spec, self.positions = spec, positions
        self.sizes = [s.vocab_sizes or (2,) * s.bits for s in spec.segments]
        for segment, sizes in zip(spec.segments, self.sizes):
            if max(sizes) * (segment.length if positions else 1) > MAX_TABLE:
                raise UserError(
                    f"A histogram of {max(sizes)} codes{' a position' if positions else ''} is too "
                    "large; count sub-tokens, or set positions=false."
                )
        self.counts: list[list[Tensor]] = []
        self.images = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.images = 0
        self.counts = [
            [
                torch.zeros(s.length if self.positions else 1, size, dtype=torch.long)
                for size in sizes
            ]
            for s, sizes in zip(self.spec.segments, self.sizes)
        ]

    @torch.no_grad()
    def update(self, codes: Tensor) -> None:
        """Count codes (B, L), (B, L, G) or (B, L, bits); a grid (B, h, w, ...) counts as well.

        Negative ids, which stand for levels left out, are not counted. Images of another size
        than the spec's are welcome where the spec has one segment and `positions` is off.
        """
        tail = 1 if len(self.sizes[0]) > 1 or self.spec.kind == "binary" else 0
        codes = codes.flatten(1, codes.ndim - 1 - tail)
        codes = codes if tail else codes[..., None]  # B L G
        self.images += len(codes)
        strict = self.positions or len(self.spec.segments) > 1
        if codes.shape[2] != len(self.sizes[0]) or (strict and codes.shape[1] != self.spec.length):
            raise UserError(f"Codes {tuple(codes.shape)} do not fit {self.spec.describe()}.")
        start = 0
        for s, sizes, tables in zip(self.spec.segments, self.sizes, self.counts):
            part = codes[:, start : start + s.length] if strict else codes
            start += s.length
            for g, (size, table) in enumerate(zip(sizes, tables)):
                ids = part[..., g]
                if self.positions:
                    ids = ids + torch.arange(s.length, device=ids.device) * size * (ids >= 0)
                found = torch.bincount(ids[ids >= 0].flatten(), minlength=table.numel())
                table += found.view(table.shape).to(table.device)

    def compute(self) -> dict[str, float]:
        """Return the statistics over all processes, by name.

        `usage` and `perplexity` (a share of the vocabulary as `perplexity_share`) of the mean over
        sub-tokens; the same with `/k` for segment k or, in one segment, sub-token k, where there
        are several; `images`; and `bits_per_image` where positions are counted apart. Bits give
        `usage` (the share that is ever both 0 and 1) and `entropy_bits`, the mean of each.
        """
        device = _device()
        summed = [[all_sum(t.to(device)).cpu() for t in tables] for tables in self.counts]
        images = all_sum(torch.tensor(float(self.images), device=device))
        found = {"images": float(images)}
        if self.positions:
            nats = sum(float(entropy(t).sum()) for tables in summed for t in tables)
            found["bits_per_image"] = nats / math.log(2)
        flat = [[t.sum(0) for t in tables] for tables in summed]
        if self.spec.kind == "binary":
            bits = torch.stack([t for tables in flat for t in tables])  # bits 2
            used = (bits > 0).all(-1).double().mean()
            found |= {"usage": float(used)}
            return found | {"entropy_bits": float(entropy(bits).mean()) / math.log(2)}
        parts = flat if len(flat) > 1 else [[t] for t in flat[0]]
        each = [_describe(tables) for tables in parts]
        for name in each[0]:
            found[name] = sum(one[name] for one in each) / len(each)
            if len(each) > 1:
                found |= {f"{name}/{k}": one[name] for k, one in enumerate(each)}
        return found


def _describe(tables: list[Tensor]) -> dict[str, float]:
    """Return the mean statistics of histograms (V,)."""
    count = len(tables)
    return {
        "usage": sum(float(usage(t)) for t in tables) / count,
        "perplexity": sum(float(perplexity(t)) for t in tables) / count,
        "perplexity_share": sum(float(perplexity(t)) / len(t) for t in tables) / count,
    }


def _device() -> torch.device:
    """Return where collectives of this run work."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        on_gpu = distributed.get_backend() == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return torch.device("cpu")
