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
    `commit`, and sample through `head`. Rows R are samples, or twice as many under guidance.
    Calling it gives the training loss.

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

    def forward(
        self,
        codes: Tensor,
        cond: Cond | Any,
        *,
        noise: Noise | None = None,
        drop_B: Tensor | None = None,
    ) -> LossOutput:
        """Return the training loss: the conditioner, then `loss`, as one pass of the module.

        Hooks, `compile` and sharding see all weights at work in it.

        Args:
            codes: (B, L[, G or C]), as `spec` says.
            cond: conditions, or what the conditioner reads: labels (B,), text features.
            noise: as for `loss`.
            drop_B: rows that get the null condition, for inputs of the conditioner.
        """
        if not isinstance(cond, Cond):
            cond = self.conditioner(cond, drop_B=drop_B)
        return self.loss(codes, cond, noise=noise)

    @abstractmethod
    def loss(self, codes: Tensor, cond: Cond, *, noise: Noise | None = None) -> LossOutput:
        """Return the training loss of codes (B, L[, G or C]) under conditions (B rows).

        Args:
            codes: as `spec` says.
            cond: from `conditioner`, with its training dropout already applied.
            noise: the random numbers of the loss, for exact replay; fresh ones when None.
        """

    @abstractmethod
    def score(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return the outputs of every position given the groups before it (teacher forcing).

        What the head reads: logits (B, L, V) of a softmax head, hidden vectors (B, L, D) of a
        diffusion head. Positions stand in the tokenizer's order.
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
        """Return the outputs of the next group, as `score` does, (R, n, ...).

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
        """Take what the network needs of its frozen tokenizer; called before it is used.

        Next-scale models read the multi-scale quantiser to build their inputs. What is bound is
        not part of the generator's weights.
        """

    def set_progress(self, progress: float) -> None:
        """Set the share in [0, 1] of the training that is done; called before each step.

        For losses that change over the training, such as RAR's random orders.
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

    def require_ids(self, spec: CodeSpec) -> None:
        """Raise unless the codes are discrete with one id a position."""
        self.require(spec, {"discrete": "ids"})
        if spec.sub_tokens != 1:
            raise IncompatibleError(
                f"{type(self).__name__} predicts one id a position, but {spec.describe()} has "
                f"{spec.sub_tokens}. Use a generator with a factorised head, or a tokenizer "
                "with one id a position."
            )

    def require_vectors(self, spec: CodeSpec) -> None:
        """Raise unless the codes are continuous and of one width."""
        self.require(spec, {"continuous": "vectors"})
        if len({segment.dim for segment in spec.segments}) > 1:
            raise IncompatibleError(
                f"{type(self).__name__} needs one code width, but {spec.describe()} has several. "
                "Choose a tokenizer whose segments are equally wide."
            )

    def refuse_drafts(self, given: bool, *, use: str) -> None:
        """Raise if a draft of future codes is given, which this network cannot score.

        Args:
            given: whether there is one.
            use: the strategies that fit: `decoder=masked`.
        """
        if given:
            raise IncompatibleError(f"{type(self).__name__} cannot score drafts; use {use}.")


class AnyOrderGenerator(Generator):
    """Scores any subset of the codes given any other; the decoder names the positions.

    `plan.any_order` is true and `plan.groups` only a default: a `predict` or `commit` without
    positions follows the groups of the plan one by one. Codes that are known beforehand
    (completion, inpainting) are committed before the first `predict`.
    """

    @abstractmethod
    def predict(
        self, state: Any, draft: Tensor | None = None, *, positions: Tensor | None = None
    ) -> Tensor:
        """Return the outputs (R, n, ...) at `positions` given every committed code.

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
