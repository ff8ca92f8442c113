"""Sampling settings by their names on the command line: which make guidance, which make filters.

This is their one declaration: `cfg` is the guidance scale, `cfg_NAME` any other field of
`Guidance`, and the rest are the fields of `Filters`. `argen sample`, `argen evaluate`, its sweeps
and the defaults that a model is saved with take these names and no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.errors import UserError, suggest

GUIDANCE = {
    "cfg" if field.name == "scale" else f"cfg_{field.name}": field.name
    for field in fields(Guidance)
}
FILTERS = tuple(f.name for f in fields(Filters))
SETTINGS = (*GUIDANCE, *FILTERS)


def given_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling settings that a command was given, those left at null omitted."""
    return {name: settings[name] for name in SETTINGS if settings.get(name) is not None}


def controls(
    settings: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> tuple[Guidance, Filters]:
    """Return guidance and filters.

    Args:
        settings: by name; None stands for the default.
        defaults: what a model was saved with.

    Raises:
        UserError: for a setting that does not exist, with close matches, or a value out of range.
    """
    merged = effective(settings, defaults)
    for name in merged:
        if name not in SETTINGS:
            raise UserError(
                f"Unknown sampling setting {name!r}.{suggest(name, SETTINGS)} "
                f"Known: {', '.join(SETTINGS)}."
            )
    return (
        Guidance(**{GUIDANCE[k]: v for k, v in merged.items() if k in GUIDANCE}),
        Filters(**{k: v for k, v in merged.items() if k in FILTERS}),
    )


def effective(
    settings: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the settings that count: what is given, else a model's own; see `controls`."""
    given = {k: v for k, v in settings.items() if v is not None}
    return {k: v for k, v in (defaults or {}).items() if k not in _replaced(given)} | given


def _replaced(given: Mapping[str, Any]) -> set[str]:
    """Return the defaults that would keep given settings from counting."""
    replaced = set()
    if "cfg" in given:
        replaced.add("cfg_sub_tokens")
        if not isinstance(given["cfg"], int | float):
            replaced.add("cfg_schedule")  # a list of weights is its own schedule
    if any(name in given for name in FILTERS):
        replaced.add("sub_tokens")
    return replaced
