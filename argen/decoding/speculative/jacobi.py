"""Jacobi decoding: drafts are the model's own samples of the pass before; no second model.

`coupling` says how the drafts behind the first replaced one come about. All are exact.

- none: sampled afresh from the distributions they have now: SJD as published (arXiv 2410.01699).
- gumbel: the same with one noise vector a position in all passes, so that drafts of similar
  distributions are mostly equal (SCD, arXiv 2510.24211).
- maximal: every draft is tested with its own distributions, kept or replaced, also behind the first
  replaced one; what is carried has the distribution it has now (SCD; adaptive continuation in
  SJD-PAC, arXiv 2603.18599).
"""

from __future__ import annotations

from typing import Literal

from argen.decoding.speculative.acceptance import Acceptance, GroupRejection, Rejection
from argen.decoding.speculative.drafters import AfterRejection, Guess, JacobiDrafter
from argen.decoding.speculative.lookahead import LookAhead
from argen.errors import UserError

Coupling = Literal["none", "gumbel", "maximal"]
_AFTER_REJECTION: dict[str, AfterRejection] = {
    "none": "resample",
    "gumbel": "gumbel",
    "maximal": "continue",
}


class Jacobi(LookAhead):
    """Jacobi decoding with rejection sampling; exact.

    SJD as published is `coupling=none guess=one_hot window=16`.

    Args:
        window: tokens fed in a pass: the last final code and up to window - 1 drafts; 32, or as
            many as an image has, when None.
        coupling: what becomes of the drafts behind a rejected one: `none`, they are sampled afresh
            from the distributions they have now; `gumbel`, the same with one noise vector a
            position in all passes; `maximal`, each is tested, kept or replaced.
        guess: how positions that no pass has seen are filled. `uniform`: sampled uniformly and
            declared so; `one_hot`: sampled uniformly but declared a one-hot distribution (as
            published: exact too, but seldom kept); `left`: sampled from the distribution of the
            last position that a pass has seen.
        interval: the published `jacobi_loop_interval`, see `LookAhead`; None uses drafts always.
        acceptance: the rule that tests drafts; exact rejection sampling when None.
    """

    name = "jacobi"

    def __init__(
        self,
        *,
        window: int | None = None,
        coupling: Coupling = "maximal",
        guess: Guess = "uniform",
        interval: tuple[int, int] | None = None,
        acceptance: Acceptance | None = None,
    ) -> None:
        if coupling not in _AFTER_REJECTION:
            raise UserError(f"Unknown coupling {coupling!r}; use {', '.join(_AFTER_REJECTION)}.")
        super().__init__(
            drafter=JacobiDrafter(after_rejection=_AFTER_REJECTION[coupling], guess=guess),
            acceptance=acceptance or Rejection(),
            window=window,
            interval=interval,
        )


class GroupedJacobi(Jacobi):
    """Grouped speculative decoding (GSD, arXiv 2508.07747): Jacobi drafts, looser test, not exact.

    A draft is kept with the ratio of a group of look-alike tokens around it, so more of them are.
    As published: `coupling=none guess=one_hot window=16`, the defaults.

    Args:
        window: see `Jacobi`; 16, or as many as an image has, when None.
        coupling: see `Jacobi`.
        guess: see `Jacobi`.
        interval: see `Jacobi`.
        half_width: the group spans this many ranks below the draft and one fewer above it.
        p_threshold: largest difference of probabilities in a group.
        d_threshold: largest squared distance of input embeddings; infinite switches it off.
        known_codes: distances are used only in groups whose ids are all at most this.
    """

    name = "grouped"
    usual_window = 16

    def __init__(
        self,
        *,
        window: int | None = None,
        coupling: Coupling = "none",
        guess: Guess = "one_hot",
        interval: tuple[int, int] | None = None,
        half_width: int = 7,
        p_threshold: float = 0.15,
        d_threshold: float = 0.5,
        known_codes: int = 10000,
    ) -> None:
        super().__init__(
            window=window,
            coupling=coupling,
            guess=guess,
            interval=interval,
            acceptance=GroupRejection(
                half_width=half_width,
                p_threshold=p_threshold,
                d_threshold=d_threshold,
                known_codes=known_codes,
            ),
        )
