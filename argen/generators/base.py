"""The generator contract: score codes group by group, with an explicit state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from argen.errors import IncompatibleError
from argen.generators.conditioning import Cond, Conditioner
from argen.generators.heads.base import Head
from argen.generators.plan import Plan
from argen.layers.noise import Noise
from argen.spec import CodeSpec


@dataclass
class LossOutput:
    """A training loss.

    Attributes:
        loss: scalar to minimise.
        metrics: named scalars to log, detached.
        nll: loss of each position (B, L) before averaging, in nats where it is a likelihood.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    nll: Tensor | None = None


class Generator(nn.Module, ABC):
    """Models the codes of a tokenizer, group by group.

    A generator never samples and knows no strategy: decoders drive `start`, `predict` and
    `commit`, and draw through `head`. Rows R are samples, or twice as many under guidance.

    Attributes:
        spec: the codes it models.
        plan: how they are grouped and ordered.
        head: the distribution of one group.
        conditioner: what it is conditioned on.
    """

    spec: CodeSpec
    plan: Plan
    head: Head
    conditioner: Conditioner

    @abstractmethod
    def loss(self, codes: Tensor, cond: Cond, *, noise: Noise | None = None) -> LossOutput:
        """Return the training loss of codes (B, L[, G or C]) under conditions (B rows).

        Args:
            codes: as `spec` says.
            cond: from `conditioner`, with its training dropout already applied.
            noise: the loss's own random draws, for exact replay; fresh ones when None.
        """

    @abstractmethod
    def score(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return the parameters of every position given the groups before it (teacher forcing).

        Positions stand in the tokenizer's order, (B, L, ...).
        """

    @abstractmethod
    def start(self, cond: Cond, *, longest_draft: int = 0) -> Any:
        """Return a fresh state for R = len(cond) rows; it owns cache and committed codes.

        Args:
            cond: the conditions, two rows a sample under guidance.
            longest_draft: the most future codes a `predict` call will be given.
        """

    @abstractmethod
    def predict(self, state: Any, draft: Tensor | None = None) -> Tensor:
        """Return the parameters of the next group, (R, n, ...).

        With a draft of k future codes (R, k) (look-ahead plans of single codes only), return those
        of the next k + 1 positions, each given the committed codes and the draft before it;
        those past the end of the sequence mean nothing.
        """

    @abstractmethod
    def commit(self, state: Any, codes: Tensor, counts: Tensor | None = None) -> None:
        """Fix the next codes (R, n[, G or C]); rolls the cache back to what is fixed.

        Args:
            state: from `start`, changed in place.
            codes: the codes of the next group, or of the next n single-code groups.
            counts: how many of the n each row keeps, long (R,); all when None.
        """

    def bind(self, tokenizer: Any) -> None:
        """Take what the network needs of its frozen tokenizer; called before training or drawing.

        Next-scale models read the multi-scale quantiser to build their inputs. What is bound is
        not part of the generator's weights.
        """

    def set_progress(self, progress: float) -> None:
        """Hear before each training step which share in [0, 1] of the training is done.

        For losses that change on the way, such as RAR's random orders.
        """

    def require(self, spec: CodeSpec, kinds: Mapping[str, str]) -> None:
        """Raise unless this network can model `spec`.

        Args:
            spec: what the tokenizer emits.
            kinds: kind of code to what it must look like; also the list named in the message.
        """
        if spec.kind not in kinds:
            wanted = " or ".join(f"{kind} codes" for kind in kinds)
            raise IncompatibleError(
                f"{type(self).__name__} models {wanted}, not {spec.describe()}. Choose a tokenizer "
                "of that kind, or another generator."
            )


class AnyOrderGenerator(Generator):
    """Scores any subset of the codes given any other; the decoder names the positions.

    `plan.any_order` is true and `plan.groups` only a default: a `predict` or `commit` that is not
    told its positions follows the groups of the plan one by one. Codes that are known beforehand
    (completion, inpainting) are committed before the first `predict`.
    """

    @abstractmethod
    def predict(
        self, state: Any, draft: Tensor | None = None, *, positions: Tensor | None = None
    ) -> Tensor:
        """Return the parameters (R, n, ...) at `positions` given every committed code.

        Args:
            state: from `start`.
            draft: not supported by models without an order.
            positions: long (n,) or (R, n); the next group of the plan when None.
        """

    @abstractmethod
    def commit(
        self,
        state: Any,
        codes: Tensor,
        counts: Tensor | None = None,
        *,
        positions: Tensor | None = None,
    ) -> None:
        """Fix the codes (R, n[, G or C]) at `positions`.

        Args:
            state: from `start`, changed in place.
            codes: the codes.
            counts: not supported: rows fix equally many codes.
            positions: long (n,) or (R, n), not committed before; the next group of the plan when
                None.
        """
