"""Weights that a tokenizer's training starts from: second stages, fine-tuning, another decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from argen.errors import CheckpointError, UserError, suggest
from argen.tokenizers.base import Tokenizer
from argen.tokenizers.generative import GenerativeDecoder, from_plain

PROXY = "proxy."


def start_from(
    tokenizer: Tokenizer,
    *,
    weights: Mapping[str, Tensor] | None = None,
    proxy: Mapping[str, Tensor] | None = None,
    fresh: Sequence[str] = (),
    source: str = "init.model",
    proxy_source: str = "init.proxy",
) -> str:
    """Load what a training run is given to start from, by name; returns a report of one line.

    Every weight of the tokenizer must be found in `weights`, the parts named `fresh` excepted.
    What `weights` has besides (a first stage's teacher, another decoder) is left out and reported.
    A plain decoder's first convolution is widened for a `GenerativeDecoder`.

    Args:
        tokenizer: receives the weights.
        weights: state dict of the tokenizer it starts from.
        proxy: state dict of a 2-D tokenizer, for the part `proxy` of a two-stage TiTok.
        fresh: parts that keep their new weights, e.g. ["decoder"].
        source: where `weights` come from, for messages.
        proxy_source: where `proxy` comes from, for messages.

    Raises:
        CheckpointError: if weights are missing or of another shape; names the first three.
        UserError: if a part that is frozen in training is given no weights, or `fresh` names
            no part.
    """
    own = tokenizer.state_dict()
    parts = sorted({key.partition(".")[0] for key in own})
    for name in fresh:
        if name not in parts:
            raise UserError(
                f"init.fresh names {name!r}, which {type(tokenizer).__name__} does not have; its "
                f"parts are {', '.join(parts)}.{suggest(name, parts)}"
            )
    kept = tuple(f"{name}." for name in fresh)
    given: dict[str, Tensor] = {}
    unused: list[str] = []
    if weights is not None:
        if isinstance(getattr(tokenizer, "decoder", None), GenerativeDecoder):
            weights = _widened(weights, own)
        wanted = [key for key in own if not key.startswith(kept)]
        wanted = [key for key in wanted if proxy is None or not key.startswith(PROXY)]
        given, unused = _matched(tokenizer, own, weights, wanted, source)
        unused = [key for key in unused if not key.startswith(kept)]
    if proxy is not None:
        wanted = [key for key in own if key.startswith(PROXY)]
        if not wanted:
            raise UserError(
                f"init.proxy is for two-stage tokenizers; {type(tokenizer).__name__} as "
                "configured has no proxy: leave it out."
            )
        renamed = {f"{PROXY}{key}": value for key, value in proxy.items()}
        found, left = _matched(tokenizer, own, renamed, wanted, proxy_source)
        given |= found
        unused += left
    _require_frozen(tokenizer, own, given)
    tokenizer.load_state_dict(given, strict=False)
    return _report(given, own, unused)


def _widened(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a plain decoder's weights for a generative one; others as they are."""
    key = "decoder.conv_in.weight"
    if key in weights and own[key].shape[1] == 2 * weights[key].shape[1]:
        return from_plain(weights)
    return weights


def _matched(
    tokenizer: Tokenizer,
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    wanted: Sequence[str],
    source: str,
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the wanted weights, and the keys of those that are not wanted."""
    missing = [key for key in wanted if key not in weights]
    misshapen = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
        for key in wanted
        if key in weights and weights[key].shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        part = (missing or misshapen)[0].partition(".")[0]
        raise CheckpointError(
            f"{type(tokenizer).__name__} cannot start from {source}: {'; '.join(problems)}. Give "
            f"the model it was made for, or let a part start anew (init.fresh=[{part}])."
        )
    found = {key: weights[key] for key in wanted}
    return found, [key for key in weights if key not in found]


def _require_frozen(
    tokenizer: Tokenizer, own: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> None:
    """Raise if a part that training leaves alone would stay random."""
    bare = [
        part
        for part in tokenizer.frozen_parts
        if any(key.startswith(f"{part}.") and key not in given for key in own)
    ]
    if bare:
        key = "init.proxy" if bare == ["proxy"] else "init.model"
        raise UserError(
            f"{type(tokenizer).__name__} does not train its {' and '.join(bare)} here, so training "
            f"must start from given weights: {key}=DIR, a trained tokenizer's model directory."
        )


def _report(given: Mapping[str, Tensor], own: Mapping[str, Tensor], unused: Sequence[str]) -> str:
    anew = sorted({key.partition(".")[0] for key in own if key not in given})
    left = sorted({".".join(key.split(".")[: 2 if key.startswith(PROXY) else 1]) for key in unused})
    line = f"{len(given)} of {len(own)} weights given"
    if anew:
        line += f"; new: {', '.join(anew)}"
    if left:
        line += f"; not used: {', '.join(left)}"
    return line
