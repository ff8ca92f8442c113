"""Lookup-free quantisation: the code of a vector is the signs of its numbers (arXiv 2310.05737)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from argen.errors import UserError
from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.tokenizers.quantizers import bit_entropy
from argen.tokenizers.quantizers.base import Quantized, Quantizer, straight_through

BATCH_ENTROPIES = ("pooled", "group", "bitwise")
MAX_JOINT_BITS = 26  # 2^26 mean probabilities are 268 MB


class LFQ(Quantizer):
    """Signs of C numbers; no codebook to learn, none to search.

    Losses, in training only: `sample_entropy` (to be made small), `batch_entropy` of the mean
    assignment over all processes (to be made large: weigh it negatively) and `commitment`.

    Args:
        bits: number of bits C of a position.
        groups: the entropies treat C as this many groups of bits (WeTok, arXiv 2508.05599).
        split: bits of each emitted id, e.g. (6, 12) for two sub-tokens; one id a group when None.
        first_bit: whether the first number is the `lowest` bit of an id (Open-MAGVIT2, WeTok) or
            the `highest` (vector-quantize-pytorch).
        as_bits: emit bit vectors instead of ids, for codes that no vocabulary can hold.
        scale: codes are +scale and -scale.
        temperature: of the soft assignments in the entropies.
        batch_entropy: `pooled` takes one mean assignment over positions and groups (WeTok);
            `group` one a group, averaged; `bitwise` treats bits as independent (BSQ).
        clamp_log: take logarithms of max(p, 1e-5), as vector-quantize-pytorch does, instead of the
            exact sample entropy; lists all 2^(C / groups) codes. Not with `bitwise`.
        soft_clamp: keep the numbers within (-soft_clamp, soft_clamp) by soft_clamp tanh(z /
            soft_clamp) first, so that entropies and commitment cannot run away (the option
            soft_clamp_input_value of vector-quantize-pytorch); signs, so codes, stay as they are.
    """

    def __init__(
        self,
        bits: int,
        *,
        groups: int = 1,
        split: Sequence[int] | None = None,
        first_bit: str = "lowest",
        as_bits: bool = False,
        scale: float = 1.0,
        temperature: float = 0.01,
        batch_entropy: str = "pooled",
        clamp_log: bool = False,
        soft_clamp: float | None = None,
    ) -> None:
        super().__init__()
        if bits < 1 or groups < 1 or bits % groups:
            raise UserError(f"{bits} bits cannot be split into {groups} equal groups.")
        split = tuple(split) if split is not None else (bits // groups,) * groups
        if sum(split) != bits or min(split) < 1:
            raise UserError(f"The sub-tokens' bits {list(split)} must add up to {bits}.")
        if max(split) > 62 and not as_bits:
            raise UserError(
                f"An id of {max(split)} bits does not fit 64-bit integers; set groups or split, "
                "or as_bits=true."
            )
        if first_bit not in ("lowest", "highest"):
            raise UserError(f"Unknown first_bit {first_bit!r}; use lowest or highest.")
        if batch_entropy not in BATCH_ENTROPIES:
            raise UserError(
                f"Unknown batch_entropy {batch_entropy!r}; use {', '.join(BATCH_ENTROPIES)}."
            )
        if clamp_log and batch_entropy == "bitwise":
            raise UserError("clamp_log=true lists all codes; use batch_entropy pooled or group.")
        if soft_clamp is not None and soft_clamp < scale:
            raise UserError(
                f"soft_clamp={soft_clamp} keeps every number away from the codes, +-{scale}: give "
                "at least that, or leave it out."
            )
        self.soft_clamp = soft_clamp
        self.dim, self.groups, self.split = bits, groups, split
        if as_bits:
            self.kind, self.bits, self.vocab_sizes = "binary", bits, ()
        else:
            self.vocab_sizes = tuple(2**b for b in split)
        self.scale, self.temperature = scale, temperature
        self.batch_entropy, self.clamp_log = batch_entropy, clamp_log
        order = [list(range(b)) if first_bit == "lowest" else list(range(b))[::-1] for b in split]
        # Of each number: the value of its bit within its id, and which id that is.
        values = [0 if as_bits else 2**power for powers in order for power in powers]
        owners = [i for i, b in enumerate(split) for _ in range(b)]
        self.values: Tensor
        self.owners: Tensor
        self.register_buffer("values", torch.tensor(values), persistent=False)
        self.register_buffer("owners", torch.tensor(owners), persistent=False)

    def normalise(self, z: Tensor) -> Tensor:
        """Return the vectors (..., C) as they are compared with the codes."""
        if self.soft_clamp is None:
            return z
        return torch.tanh(z / self.soft_clamp) * self.soft_clamp

    @property
    def magnitude(self) -> float:
        """Absolute value of each number of a code."""
        return self.scale

    def codes_of(self, ones: Tensor) -> Tensor:
        """Return codes (..., C) of booleans."""
        return torch.where(ones, self.magnitude, -self.magnitude)

    def ids_of(self, ones: Tensor) -> Tensor:
        """Return ids (...) or (..., G) of booleans (..., C)."""
        values = (ones.long() * self.values).split(self.split, dim=-1)
        ids = torch.stack([v.sum(-1) for v in values], dim=-1)
        return ids if len(self.split) > 1 else ids[..., 0]

    def ones_of(self, codes: Tensor) -> Tensor:
        """Return booleans (..., C) of ids, or of bits where codes are bits."""
        if self.kind == "binary":
            return codes > 0
        ids = codes[..., None] if len(self.split) == 1 else codes
        return (ids[..., self.owners] & self.values) != 0

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise `z` (..., C); a zero counts as negative."""
        z = self.normalise(z)
        ones = z > 0
        codes = self.codes_of(ones)
        losses = {"commitment": F.mse_loss(z, codes)} if self.training else {}
        if self.training:
            losses |= self.entropies(z)
        return Quantized(
            z=straight_through(z, codes),
            ids=None if self.kind == "binary" else self.ids_of(ones),
            losses=losses,
            codes=ones.long() if self.kind == "binary" else None,
        )

    def encode(self, z: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Return ids (...) or (..., G), or bits (..., C)."""
        return (z > 0).long() if self.kind == "binary" else self.ids_of(z > 0)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the codes (..., C) of ids, or of bits."""
        return self.codes_of(self.ones_of(ids))

    def entropies(self, z: Tensor) -> dict[str, Tensor]:
        """Return `sample_entropy` and `batch_entropy`, in nats, a group's worth each."""
        d = self.dim // self.groups
        z = z.reshape(-1, self.groups, d)  # N g d
        if d > MAX_JOINT_BITS and self.batch_entropy != "bitwise":
            raise UserError(
                f"The entropy of 2^{d} codes is out of reach; set groups, or batch_entropy=bitwise."
            )
        if self.clamp_log:
            sample, mean = bit_entropy.listed_entropies(z, self.magnitude, self.temperature)
            mean = mean.mean(0, keepdim=True) if self.batch_entropy == "pooled" else mean
            batch = bit_entropy.clamped_entropy(mean).mean()
            return {"sample_entropy": sample, "batch_entropy": batch}
        odds = z * (4.0 * self.magnitude / self.temperature)
        if self.batch_entropy == "pooled":
            batch = bit_entropy.entropy(bit_entropy.mean_assignment(odds.flatten(0, 1)))
        else:
            one = (
                bit_entropy.bitwise_entropy
                if self.batch_entropy == "bitwise"
                else lambda group: bit_entropy.entropy(bit_entropy.mean_assignment(group))
            )
            batch = torch.stack([one(group) for group in odds.unbind(1)]).mean()
        return {"sample_entropy": bit_entropy.sample_entropy(odds), "batch_entropy": batch}


class BSQ(LFQ):
    """Binary spherical quantisation (arXiv 2406.07548): signs of a unit vector, scaled to length 1.

    The rounding error is bounded, |u - q|^2 <= 2 - 2 / sqrt(C), so that the straight-through
    gradient stays honest without a commitment loss. Arguments as in `LFQ`; by default bits count
    as independent in the batch entropy, as in the paper. Each group of bits is a sphere of its own.
    """

    def __init__(self, bits: int, *, batch_entropy: str = "bitwise", **options: object) -> None:
        super().__init__(bits, batch_entropy=batch_entropy, **options)  # type: ignore[arg-type]

    def normalise(self, z: Tensor) -> Tensor:
        """Return (..., C) with each group on the sphere of radius `scale`."""
        grouped = super().normalise(z).unflatten(-1, (self.groups, -1))
        return (F.normalize(grouped, dim=-1) * self.scale).flatten(-2)

    @property
    def magnitude(self) -> float:
        """Absolute value of each number of a code: scale / sqrt(C / groups)."""
        return self.scale / (self.dim // self.groups) ** 0.5
