"""Replays the exact toys: joints and passes of whole strategies, laws of single tests.

The strategies' own code runs here; every outcome of its random decisions is followed and summed.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional as F

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.speculative.acceptance import Acceptance, GroupRejection, Rejection
from argen.decoding.speculative.jacobi import Coupling, Jacobi
from argen.decoding.speculative.neighbours import NeighbourRejection, nearest_codes
from argen.testing.enumeration import ExactLaw, enumerate_decoder
from argen.testing.table import Table
from replays.fixture import Fixture

SYSTEMS = (
    "speculative-toy",
    "jacobi-toy",
)

_COUPLINGS: dict[str, Coupling] = {"sjd": "none", "gsd": "none", "ac": "maximal"}
_GUESSES = {"onehot": "certain", "uniform": "uniform"}


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a `speculative-toy` or `jacobi-toy` fixture."""
    laws = [fixture[f"p{i + 1}"].double() for i in range(fixture.config["tokens"])]
    V = laws[0].shape[-1]
    generator = Table([law.reshape(1, -1, V).log() for law in laws])
    shape = (V,) * len(laws)
    plain = laws[0]
    for law in laws[1:]:
        plain = plain[..., None] * law
    found = {"joint_plain": plain}
    known: dict[str, ExactLaw] = {}

    def law_of(name: str) -> ExactLaw:
        if name not in known:
            known[name] = _enumerate(fixture, generator, name)
        return known[name]

    for name in fixture.expected:
        kind, _, rest = name.partition("_")
        if kind == "joint" and rest != "plain":
            found[name] = law_of(rest).joint.reshape(shape)
        elif name == "expected_passes":
            order = re.findall(r"\b(?:sjd|ac|gsd)_(?:onehot|uniform)\b", fixture.description(name))
            found[name] = torch.tensor([law_of(n).passes for n in order], dtype=torch.float64)
        elif kind in ("onestep", "accept"):
            found[name] = _one_step(fixture, rest)[kind == "accept"]
    return found


def _enumerate(fixture: Fixture, generator: Table, name: str) -> ExactLaw:
    rule, guess = name.split("_")
    acceptance: Acceptance = Rejection()
    if rule == "gsd":
        acceptance = _group_rule(fixture)
    decoder = Jacobi(
        window=generator.spec.length,
        coupling=_COUPLINGS[rule],
        guess=_GUESSES[guess],  # type: ignore[arg-type]
        acceptance=acceptance,
    )
    cond = generator.conditioner(torch.zeros(1, dtype=torch.long))
    return enumerate_decoder(decoder, generator, cond, guidance=Guidance(), filters=Filters())


def _group_rule(fixture: Fixture) -> GroupRejection:
    everything = float("inf")
    return GroupRejection(
        half_width=fixture.config["gsd_half_width"], p_threshold=everything, d_threshold=everything
    )


def _one_step(fixture: Fixture, rule: str) -> tuple[Tensor, Tensor]:
    """Return the law of the token after one draft and its correction, and how often it is kept."""
    p, q = fixture["step_p"].double(), fixture["step_q"].double()
    cases, V = p.shape
    acceptance: Acceptance = Rejection()
    if rule == "gsd":
        acceptance = _group_rule(fixture)
    elif rule.startswith("lantern"):
        acceptance = NeighbourRejection(
            k=fixture.config["lantern_k"],
            delta=fixture.config["lantern_delta"],
            certain=rule.endswith("_det"),
            nearest=nearest_codes(fixture["step_codes"], V - 1),
        )
    # Every token in turn is the draft: cases x V tests.
    draft = torch.arange(V).expand(cases, V)
    p_all, q_all = (law[:, None].expand(cases, V, V) for law in (p, q))
    chance = acceptance.chance(p_all[:, :, None], q_all[:, :, None], draft[..., None])[..., 0]
    repair = acceptance.repair(p_all, q_all, draft)
    kept = F.one_hot(draft, V) * chance[..., None]
    emitted = kept + (1 - chance)[..., None] * repair
    return (q[..., None] * emitted).sum(1), (q * chance).sum(1)
