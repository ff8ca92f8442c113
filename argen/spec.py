"""What a tokenizer emits and a generator models: the vocabulary shared by every package.

Names used throughout: B batch, L tokens, G sub-tokens, C code width, D model width, V vocabulary,
H W pixels, h w code grid, n positions in a group.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from argen.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["discrete", "binary", "continuous"]


@dataclass(frozen=True)
class Segment:
    """A run of codes of one sort.

    Attributes:
        shape: (h, w) of the code grid; a 1-D sequence of 32 tokens is (1, 32).
        vocab_sizes: one entry per sub-token: (16384,) plain, (64, 4096) factorised,
            (1024,) * 8 for eight residual levels. Empty unless the codes are discrete.
        bits: length of a bit-vector code (binary codes), else 0.
        dim: width of a continuous code, or of the codebook row behind a discrete one.
    """

    shape: tuple[int, int]
    vocab_sizes: tuple[int, ...] = ()
    bits: int = 0
    dim: int = 0

    @property
    def length(self) -> int:
        """Number of positions h * w."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class CodeSpec:
    """The code language of a tokenizer; stored with every code file and checkpoint.

    Attributes:
        kind: `discrete` ids (B, L) or (B, L, G); `binary` bits (B, L, bits); `continuous` floats
            (B, L, C), normalised by statistics that live in the tokenizer.
        segments: a grid has one; a pyramid one per scale; a holistic-and-patches code two.
    """

    kind: Kind
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if not self.segments:
            raise SpecError("A CodeSpec needs at least one segment.")
        for segment in self.segments:
            if min(segment.shape) < 1:
                h, w = segment.shape
                raise SpecError(
                    f"A grid of {h}x{w} holds no codes: the images are smaller than one code, so "
                    "choose a larger image_size."
                )
            ok = {
                "discrete": bool(segment.vocab_sizes) and segment.bits == 0,
                "binary": segment.bits > 0 and not segment.vocab_sizes,
                "continuous": segment.dim > 0 and not segment.vocab_sizes and segment.bits == 0,
            }
            if self.kind not in ok:
                raise SpecError(f"Unknown code kind {self.kind!r}; use one of {', '.join(ok)}.")
            if not ok[self.kind]:
                raise SpecError(f"{segment} does not describe {self.kind} codes.")

    @property
    def length(self) -> int:
        """Number of positions L over all segments."""
        return sum(segment.length for segment in self.segments)

    @property
    def sub_tokens(self) -> int:
        """Number of ids per position G (1 for plain discrete codes)."""
        return max(1, len(self.segments[0].vocab_sizes))

    @property
    def vocab_size(self) -> int:
        """Size V of the joint vocabulary of one position (the product over sub-tokens)."""
        if self.kind == "continuous":
            raise SpecError("Continuous codes have no vocabulary.")
        first = self.segments[0]
        return 2**first.bits if self.kind == "binary" else math.prod(first.vocab_sizes)

    @property
    def dim(self) -> int:
        """Code width C of the first segment."""
        return self.segments[0].dim

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the last segment: the finest image grid of the codes."""
        return self.segments[-1].shape

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that name this spec in shards and checkpoints."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, for JSON."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def of(cls, spec: CodeSpec | Mapping[str, Any]) -> CodeSpec:
        """Return `spec` itself, or the one that a plain dictionary describes."""
        return spec if isinstance(spec, CodeSpec) else cls.from_dict(spec)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CodeSpec:
        """Rebuild a spec from `to_dict`'s output."""
        segments = tuple(
            Segment(
                shape=(int(s["shape"][0]), int(s["shape"][1])),
                vocab_sizes=tuple(int(v) for v in s.get("vocab_sizes", ())),
                bits=int(s.get("bits", 0)),
                dim=int(s.get("dim", 0)),
            )
            for s in data["segments"]
        )
        return cls(kind=data["kind"], segments=segments)

    def describe(self) -> str:
        """Return one line for messages, e.g. `discrete 8x8, vocabulary 512 (dim 3) [1f2e...]`."""
        parts = []
        for s in self.segments:
            size = f"{s.shape[0]}x{s.shape[1]}"
            if self.kind == "discrete":
                size += ", vocabulary " + "*".join(str(v) for v in s.vocab_sizes)
            elif self.kind == "binary":
                size += f", {s.bits} bits"
            parts.append(size + (f" (dim {s.dim})" if s.dim else ""))
        shown = " + ".join(parts if len(parts) <= 3 else [parts[0], "...", parts[-1]])
        return f"{self.kind} {shown} [{self.fingerprint()}]"

    def code_shape(self, batch: int) -> tuple[int, ...]:
        """Return the shape of a batch of codes: (B, L), (B, L, G), (B, L, bits) or (B, L, C)."""
        if self.kind == "discrete":
            tail = (self.sub_tokens,) if self.sub_tokens > 1 else ()
        else:
            tail = (self.segments[0].bits,) if self.kind == "binary" else (self.dim,)
        return (batch, self.length, *tail)

    def check(self, codes: Tensor) -> None:
        """Raise `SpecError` unless `codes` has this spec's shape, type and range."""
        expected = self.code_shape(codes.shape[0] if codes.ndim else 0)
        if tuple(codes.shape) != expected:
            raise SpecError(
                f"Codes of shape {tuple(codes.shape)} do not fit {self.describe()}: "
                f"expected {expected}."
            )
        if self.kind == "continuous":
            if not codes.is_floating_point():
                raise SpecError(f"Continuous codes must be floats, not {codes.dtype}.")
            return
        if codes.is_floating_point():
            raise SpecError(f"{self.kind} codes must be integers, not {codes.dtype}.")
        start = 0
        for s in self.segments:
            part = codes[:, start : start + s.length]
            start += s.length
            limits = s.vocab_sizes if self.kind == "discrete" else (2,)
            columns = part[..., None] if part.ndim == 2 else part
            for g in range(columns.shape[-1]):
                limit, column = limits[min(g, len(limits) - 1)], columns[..., g]
                if column.numel() and (int(column.min()) < 0 or int(column.max()) >= limit):
                    raise SpecError(
                        f"Codes lie in [{int(column.min())}, {int(column.max())}], outside the "
                        f"vocabulary [0, {limit - 1}] of {self.describe()}."
                    )


def require_same_spec(found: CodeSpec, wanted: CodeSpec, *, found_in: str, wanted_by: str) -> None:
    """Raise `SpecError` naming both sides when two specs differ."""
    if found != wanted:
        raise SpecError(
            f"{found_in} holds codes of another tokenizer: {found.describe()}, but {wanted_by} "
            f"needs {wanted.describe()}. Tokenise the data again with the tokenizer that belongs "
            f"to {wanted_by}."
        )
