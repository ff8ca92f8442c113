"""The decoding contract: a strategy that drives a generator until every code is drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from argen.build import buildable
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond
from argen.layers.noise import Noise


@dataclass
class DecodeResult:
    """Drawn codes and what they cost.

    Attributes:
        codes: (B, L), (B, L, G), (B, L, bits) or (B, L, C), as the generator's spec says.
        passes: network passes made.
        accepted: codes committed by each pass and sample, (passes, B), where a strategy varies it.
        latents: latent maps (B, h, w, C) to decode in place of the codes, where a strategy mixes
            their vectors.
    """

    codes: Tensor
    passes: int
    accepted: Tensor | None = None
    latents: Tensor | None = None


class Observer(Protocol):
    """Is told of finished codes as they come; used by previews, progress and tests."""

    def __call__(self, positions: Tensor, codes: Tensor, params: Tensor) -> None:
        """Receive the positions, codes (B, n, ...) and guided parameters of a group.

        Positions are (n,), or (B, n) where samples differ; -1 marks a place that is not finished.
        """


@buildable()
class Decoder(ABC):
    """A sampling strategy.

    Attributes:
        exact: whether its codes follow the generator's own distribution exactly.
        takes_known: whether a call takes `known`, codes that are given beforehand.
    """

    exact: bool
    takes_known: bool = False

    def bind(self, tokenizer: Any) -> None:  # noqa: B027
        """Take what the strategy needs of the tokenizer, such as its codebook; before `check`."""

    def most_rows(self, generator: Generator, batch_size: int) -> int | None:
        """Return the most rows of a guided pass after the prefix, None where that is open."""
        return None

    def require_exact(self) -> None:
        """Raise unless the codes follow the generator's own distribution."""
        if not self.exact:
            raise UserError(
                f"{type(self).__name__} is not exact: its images follow another distribution "
                "than the model's. Use decoder=jacobi or decoder=sequential, which are, or drop "
                "require_exact=true."
            )

    def require_known(self) -> None:
        """Raise unless codes can be given beforehand."""
        if not self.takes_known:
            raise IncompatibleError(
                f"{type(self).__name__} draws every code, so none can be given: use "
                "decoder=sequential, masked or confidence to complete an image."
            )

    @abstractmethod
    def check(self, generator: Generator) -> None:
        """Raise `IncompatibleError`, naming what would fit, if it cannot drive `generator`."""

    @abstractmethod
    def __call__(
        self,
        generator: Generator,
        cond: Cond,
        *,
        guidance: Guidance,
        filters: Filters,
        noise: Noise,
        observer: Observer | None = None,
    ) -> DecodeResult:
        """Draw the codes of B = len(cond) samples."""
