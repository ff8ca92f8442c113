"""The contract of generators whose codes may be drawn in any order: MAR, MaskGIT and their kin."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from argen.generators.base import Generator


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
