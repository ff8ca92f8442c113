"""What a strategy is handed with a generator and its conditions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.layers.noise import Noise


class Observer(Protocol):
    """Is told of finished codes as they come; used by previews, progress and tests."""

    def __call__(self, positions: Tensor, codes: Tensor, outputs: Tensor) -> None:
        """Receive the positions, codes (B, n, ...) and guided outputs of a group.

        Positions are (n,), or (B, n) where samples differ; -1 marks a place that is not finished.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingContext:
    """How the codes of a batch are sampled, whatever the strategy.

    Attributes:
        noise: random numbers keyed by sample and position.
        guidance: weight and schedule; none by default.
        filters: cut the guided logits; for continuous codes only the temperature counts.
        observer: is told of finished codes as they come, not of codes that are given.
        known: positions (n,) or (B, n) and codes (n, ...) or (B, n, ...) that are given
            beforehand, for completion and inpainting; see `Decoder.takes_known`.
    """

    noise: Noise
    guidance: Guidance = field(default_factory=Guidance)
    filters: Filters = field(default_factory=Filters)
    observer: Observer | None = None
    known: tuple[Tensor, Tensor] | None = None
