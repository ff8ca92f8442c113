"""Replays SJD and GSD: the acceptance rule alone, and whole runs on a LlamaGen GPT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.decoding.speculative.acceptance import Acceptance, GroupRejection, Rejection
from argen.decoding.speculative.decisions import FRESH, GUESS, KEEP, REPAIR, Draws, use_of
from argen.decoding.speculative.distributions import Laws
from argen.decoding.speculative.drafters import Draft, take_slots
from argen.decoding.speculative.jacobi import Grouped, Jacobi
from argen.decoding.speculative.verifier import verify
from argen.generators.heads.base import guide
from argen.interop.base import Imported
from argen.interop.llamagen import llamagen
from replays.fixture import Fixture

SYSTEMS = (
    "sjd",
    "gsd",
)


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of an `sjd` or `gsd` fixture."""
    return _whole_run(fixture) if fixture.weights else _rule(fixture)


def _acceptance(fixture: Fixture) -> Acceptance:
    if fixture.system == "sjd":
        return Rejection()
    config = fixture.config
    return GroupRejection(
        half_width=config["half_width"],
        p_threshold=config["p_thr"],
        d_threshold=config["d_thr"],
        vectors=fixture.io.get("codes"),
    )


class GivenLaws(Laws):
    """Laws that were recorded, (B, n, G, V)."""

    def __init__(self, laws: Tensor) -> None:
        self._single = laws


class RecordedTokens(Draws):
    """Recorded uniforms of the tests, and recorded tokens for the fresh draws."""

    def __init__(self, fixture: Fixture) -> None:
        self.fixture = fixture

    def keep(self, chance: Tensor, positions: Tensor, *, matters: Tensor, **_: Any) -> Tensor:
        """Compare with `u_accept`."""
        uniform = self.fixture["u_accept"][:, 1:, None]
        return (uniform < chance) & matters[..., None]

    def choose(self, law: Tensor, positions: Tensor, *, use: int, **options: Any) -> Tensor:
        """Draw with `u_resample`, or return the recorded tokens."""
        if use == use_of(FRESH):
            return self.fixture["fresh_tokens"]
        noise = RecordedNoise({REPAIR: lambda number, n: self.fixture["u_resample"][:, None]})
        return Draws(noise).choose(law, positions, use=use, **options)


def _rule(fixture: Fixture) -> dict[str, Tensor]:
    p, q = fixture["target_probs"].double(), fixture["draft_probs"].double()
    if "target_logits" in fixture.io:
        p = torch.softmax(fixture["target_logits"].double(), dim=-1)
    drafts = fixture["draft_tokens"][:, 1:, None]
    B, k = drafts.shape[:2]
    acceptance = _acceptance(fixture)
    draft = Draft(drafts, q[:, 1:, None], torch.full((B,), k))
    codes, _, matched = verify(
        draft,
        GivenLaws(p[:, :, None]),
        torch.arange(k + 1).expand(B, -1),
        RecordedTokens(fixture),
        0,
        acceptance=acceptance,
        behind="redraw",
    )
    rejected = matched <= k
    at = (matched - 1).clamp(max=k - 1)[:, None]
    residual = acceptance.repair(
        take_slots(p[:, :k], at), take_slots(q[:, 1:], at), take_slots(drafts[..., 0], at)
    )[:, 0]
    return {
        "matched": matched,
        "output_tokens": codes[..., 0],
        "rejected": rejected.long(),
        "residual": residual * rejected[:, None],
    }


class RecordedNoise:
    """Uniforms of a recorded run, by what they are for and the pass they belong to.

    Args:
        tables: for each kind of draw, the uniforms (B, n) of n positions in pass number t.
    """

    def __init__(self, tables: dict[int, Any]) -> None:
        self.tables = tables

    def uniform(self, positions: Tensor, size: tuple[int, ...] = (), *, use: int = 0) -> Tensor:
        """Return recorded uniforms (B, n, *size) as float64."""
        for kind, table in self.tables.items():
            number, rest = divmod(use - use_of(kind), use_of(0, 1) - use_of(0))
            if rest == 0 and number >= 0:
                uniform = table(number, positions.shape[-1]).double()
                return uniform.reshape(*uniform.shape, *(1,) * len(size))
        raise LookupError(f"no recorded draws for use {use}")


def _whole_run(fixture: Fixture) -> dict[str, Tensor]:
    config = fixture.config
    model = Imported(
        llamagen.generator_config(config),
        llamagen.generator_weights(fixture.weights),
        fixture.name,
    ).build()
    cond = model.conditioner(fixture["label"])
    guidance = Guidance(config["cfg_scale"])
    filters = Filters(
        temperature=config.get("temperature", 1.0),
        top_k=config.get("top_k", 0),
        top_p=config.get("top_p", 1.0),
        top_p_from_below=True,
    )
    decoder = _decoder(fixture)
    decoder.check(model)
    found, passes = _follow(fixture, decoder, model, cond, guidance, filters)
    found["passes"] = torch.tensor([passes])
    with torch.no_grad():
        tokens = found["tokens"]
        both = torch.cat((tokens, tokens)) if guidance.active else tokens
        logits = model.score(both, guidance.rows(model, cond))
        found["guided_logits"] = guide(logits, config["cfg_scale"] if guidance.active else None)[0]
    if "u_plain" in fixture.io:
        plain = PlainNoise(fixture["u_plain"])
        result = Sequential()(model, cond, guidance=guidance, filters=filters, noise=plain)
        found["tokens_plain"] = result.codes
    return found


class PlainNoise:
    """One recorded uniform a position."""

    def __init__(self, uniforms: Tensor) -> None:
        self.uniforms = uniforms

    def uniform(self, positions: Tensor, size: tuple[int, ...] = (), *, use: int = 0) -> Tensor:
        """Return the uniforms (1, n)."""
        return self.uniforms[positions].reshape(1, -1)


def _decoder(fixture: Fixture) -> Jacobi:
    config = fixture.config
    options: dict[str, Any] = {
        "window": config["window"],
        "coupling": "none",
        "guess": "certain",
        "interval": (config["jacobi_loop_interval_l"], config["jacobi_loop_interval_r"]),
    }
    if fixture.system == "sjd":
        return Jacobi(**options)
    return Grouped(
        **options,
        half_width=config["half_width"],
        p_threshold=config["p_thr"],
        d_threshold=config["d_thr"],
    )


def _follow(
    fixture: Fixture,
    decoder: Jacobi,
    model: Any,
    cond: Any,
    guidance: Guidance,
    filters: Filters,
) -> tuple[dict[str, Tensor], int]:
    """Run the decoder pass by pass and note its windows; the prefill is not counted."""
    window, vocab = config_window(fixture), model.spec.vocab_size

    # The engine's pass 0 is the prefill, so recorded pass t is its pass t + 1.
    def guesses(number: int, n: int) -> Tensor:
        if number == 0 or n == 0:
            return torch.full((1, n), 0.5)
        return (fixture["init_tokens"][number - 1, 1 : n + 1][None] + 0.5) / vocab

    def fresh(number: int, n: int) -> Tensor:
        if number == 0:
            return fixture["u_first"].expand(1, n)
        return fixture["u_draft"][number - 1, :n][None]

    noise = RecordedNoise(
        {
            KEEP: lambda number, n: fixture["u_accept"][number - 1, 1 : n + 1][None],
            REPAIR: lambda number, n: fixture["u_resample"][number - 1].expand(1, n),
            FRESH: fresh,
            GUESS: guesses,
        }
    )
    run = decoder.begin(model, cond, guidance=guidance, filters=filters)
    draws, unfinished = Draws(noise), True
    starts, lengths, inputs, matched = [], [], [], []
    with torch.inference_mode():
        while unfinished:
            before = run
            run, unfinished = decoder.step(model, run, draws)
            verdict = run.verdict
            assert verdict is not None
            if before.number == 0:
                continue
            start, width = int(verdict.start_B[0]), int(verdict.draft.width_B[0])
            fed = [int(before.codes[0, start - 1, 0]), *verdict.draft.codes[0, :width, 0].tolist()]
            starts.append(start - 1)
            lengths.append(width + 1)
            matched.append(int(verdict.matched_B[0]))
            inputs.append(fed + [-1] * (window - len(fed)))
    found = {
        "tokens": decoder.codes(model, run),
        "trace_start": torch.tensor(starts),
        "trace_length": torch.tensor(lengths),
        "trace_matched": torch.tensor(matched),
        "trace_inputs": torch.tensor(inputs),
    }
    return found, len(starts)


def config_window(fixture: Fixture) -> int:
    """Return the width of the recorded window tables."""
    return fixture["trace_inputs"].shape[1] if "trace_inputs" in fixture.io else 0
