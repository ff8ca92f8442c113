"""Large vocabularies as several small ones: how the codes of a spec become G ids a position.

Codes that are factorised already stay as they are; bit vectors are cut into groups and single ids
into digits, the most significant first (ELM, arXiv 2410.16257).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from argen.errors import IncompatibleError
from argen.spec import CodeSpec


class VocabularySplit:
    """Maps codes of a spec to ids (..., G) and back.

    Args:
        spec: discrete codes, or bits.
        parts: number of sub-tokens, or their vocabulary sizes. Codes that are factorised already
            need none.

    Attributes:
        sizes: vocabulary size of each sub-token.
    """

    def __init__(self, spec: CodeSpec, parts: int | Sequence[int] | None = None) -> None:
        self.spec = spec
        factorised = spec.kind == "discrete" and spec.sub_tokens > 1
        self.kind = "as is" if factorised else {"binary": "bits"}.get(spec.kind, "digits")
        if factorised:
            columns = zip(*(s.vocab_sizes for s in spec.segments), strict=True)
            self.sizes = tuple(max(column) for column in columns)
            if isinstance(parts, Sequence) and tuple(parts) != self.sizes:
                raise IncompatibleError(
                    f"split={list(parts)} does not fit {spec.describe()}, which is split into "
                    f"{list(self.sizes)} already; leave split out."
                )
        elif parts is None:
            raise IncompatibleError(
                f"{spec.describe()} has one id a position, not several. Say how to split it "
                "(split=2), use a generator with one softmax such as GPT, or a tokenizer with "
                "factorised codes."
            )
        elif self.kind == "bits":
            self.sizes = _bit_groups(spec, parts)
        else:
            self.sizes = _digits(spec, parts)

    def split(self, codes: Tensor) -> Tensor:
        """Return ids (..., G) of codes (..., G), (..., bits) or (...)."""
        if self.kind == "as is":
            return codes
        if self.kind == "digits":
            ids = []
            for size in reversed(self.sizes):
                ids.append(codes % size)
                codes = codes // size
            return torch.stack(ids[::-1], dim=-1)
        groups = codes.long().split([size.bit_length() - 1 for size in self.sizes], dim=-1)
        return torch.stack([(bits * _powers(bits)).sum(-1) for bits in groups], dim=-1)

    def join(self, ids: Tensor) -> Tensor:
        """Return the codes of ids (..., G)."""
        if self.kind == "as is":
            return ids
        if self.kind == "digits":
            codes = torch.zeros_like(ids[..., 0])
            for g, size in enumerate(self.sizes):
                codes = codes * size + ids[..., g]
            return codes
        groups = []
        for g, size in enumerate(self.sizes):
            bits = ids[..., g, None].expand(*ids.shape[:-1], size.bit_length() - 1)
            groups.append(bits // _powers(bits) % 2)
        return torch.cat(groups, dim=-1)


def _powers(bits: Tensor) -> Tensor:
    """Return 2^(m - 1), ..., 2, 1 for the last axis of m bits."""
    return 2 ** torch.arange(bits.shape[-1] - 1, -1, -1, device=bits.device)


def _bit_groups(spec: CodeSpec, parts: int | Sequence[int]) -> tuple[int, ...]:
    bits = spec.segments[0].bits
    if isinstance(parts, int):
        if not 1 <= parts <= bits:
            raise IncompatibleError(f"split={parts}: {bits} bits make 1 to {bits} groups.")
        cuts = [bits * i // parts for i in range(parts + 1)]
        return tuple(2 ** (b - a) for a, b in pairwise(cuts))
    if any(size & (size - 1) for size in parts) or math.prod(parts) != 2**bits:
        raise IncompatibleError(
            f"split={list(parts)} does not fit {spec.describe()}: give powers of two whose product "
            f"is 2^{bits}."
        )
    return tuple(int(size) for size in parts)


def _digits(spec: CodeSpec, parts: int | Sequence[int]) -> tuple[int, ...]:
    vocab = spec.vocab_size
    if any(s.vocab_sizes != spec.segments[0].vocab_sizes for s in spec.segments):
        raise IncompatibleError(
            f"{spec.describe()} has segments of different vocabularies, which cannot be split."
        )
    if not isinstance(parts, int):
        if math.prod(parts) != vocab:
            raise IncompatibleError(
                f"split={list(parts)} does not fit {spec.describe()}: the product of the sizes "
                f"must be {vocab}."
            )
        return tuple(int(size) for size in parts)
    sizes, left = [], vocab
    for remaining in range(parts, 0, -1):
        goal = math.isqrt(left) if remaining == 2 else round(left ** (1 / remaining))
        size = next((d for d in range(max(1, goal), 0, -1) if left % d == 0), 1)
        sizes.append(left if remaining == 1 else size)
        left //= size
    if min(sizes) < 2:
        raise IncompatibleError(
            f"split={parts}: {vocab} codes have no {parts} factors above 1. Choose another number "
            "of sub-tokens, or another vocabulary size."
        )
    return tuple(sizes)
