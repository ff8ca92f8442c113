"""The decoding contract: a strategy that drives a generator until every code is sampled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from argen.build import buildable
from argen.decoding.context import SamplingContext
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond


@dataclass
class DecodeResult:
    """Sampled codes and what they cost.

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

    def max_rows(self, generator: Generator, batch_size: int) -> int | None:
        """Return the largest number of rows of a guided pass behind the prefix; None if unknown."""
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
                f"{type(self).__name__} samples every code, so none can be given: use "
                "decoder=sequential, masked or confidence to complete an image."
            )

    @abstractmethod
    def check(self, generator: Generator) -> None:
        """Raise `IncompatibleError`, naming what would fit, if it cannot drive `generator`."""

    def __call__(self, generator: Generator, cond: Cond, context: SamplingContext) -> DecodeResult:
        """Sample the codes of B = len(cond) images, without gradients.

        Args:
            generator: what is sampled from.
            cond: conditions, one row an image, without the null rows of guidance.
            context: guidance, filters, noise, observer, known codes.

        Raises:
            IncompatibleError: if the strategy cannot drive `generator`, or take codes that are
                given.
        """
        self.check(generator)
        if context.known is not None:
            self.require_known()
        with torch.inference_mode():
            return self.sample(generator, cond, context)

    @abstractmethod
    def sample(self, generator: Generator, cond: Cond, context: SamplingContext) -> DecodeResult:
        """Sample the codes; what `check` and `takes_known` refuse never gets here."""
