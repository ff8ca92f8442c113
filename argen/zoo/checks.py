"""What the keys of `_meta_` may hold; errors name the place, the key and what would be right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from argen.errors import UserError, suggest
from argen.runtime.presets import config_dir, preset_names

# What `argen.pipeline.settings.SETTINGS` has, and the command line: guidance, then filters.
SAMPLING = (
    *("cfg", "cfg_schedule", "cfg_power", "cfg_start", "cfg_inclusive", "cfg_ahead"),
    *("cfg_interval", "cfg_sub_tokens", "cfg_parallel", "cfg_norm_cap"),
    *("temperature", "top_k", "top_p", "min_p", "entropy_k", "top_p_from_below", "sub_tokens"),
)

# Scores by the key of an entry of `expected`, as they are written for people.
METRICS = {
    "fid": "FID",
    "rfid": "rFID",
    "is": "IS",
    "ris": "rIS",
    "precision": "precision",
    "recall": "recall",
    "geneval": "GenEval",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "usage": "code usage",
    "proxy_cross_entropy": "cross entropy of proxy codes",
}

# What a score was got on or with, besides sampling settings.
CONTEXT = {
    "image_size": "side of the scored images in pixels",
    "codes": "codes of an image",
    "set": "images that were scored",
    "split": "part of the data set",
    "against": "images of the reference",
    "passes": "passes of the network an image",
    "steps": "network evaluations a group",
    "selection": "samples that were thrown away before scoring",
    "by": "who reports it, where not the paper",
}

CONVERT = ("source", "trust", "tokenizer_ckpt", "options", "tokenizer_options")

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where it was built in


def read_yaml(path: Path) -> dict[str, Any]:
    """Return what a YAML file holds, interpolations as they are written."""
    found: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    return found


def mapping_of(value: Any, where: str) -> dict[str, Any]:
    """Return a mapping as a dictionary of its own."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be a mapping of keys to values, not {value!r}.")
    return dict(value)


def list_of(meta: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """Return the list under a key, an empty one where it is not there."""
    value = meta.get(key, [])
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: {key} must be a list, [] for none, not {value!r}.")
    return list(value)


def known_keys(meta: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Refuse keys that are not among `names`, with close matches."""
    for key in meta:
        if key not in names:
            close = suggest(str(key), names)
            raise UserError(f"{where}: unknown key {key!r}.{close} Known: {', '.join(names)}.")


def text(meta: Mapping[str, Any], key: str, where: str) -> None:
    """Refuse a value that is there and is no text."""
    value = meta.get(key)
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise UserError(f"{where}: {key}={value!r} must be a text; put it in quotes.")


def positive(meta: Mapping[str, Any], key: str, where: str) -> None:
    """Refuse a value that is there and is no positive whole number."""
    value = meta.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"{where}: {key}={value!r} must be a positive whole number.")


def https(value: str, where: str) -> None:
    """Refuse an address that does not begin with https."""
    if not re.fullmatch(r"https://\S+", value):
        raise UserError(f"{where}={value} is no address; write https://...")


def sampling(settings: Mapping[str, Any], where: str) -> None:
    """Refuse settings that `argen.sample` does not have."""
    known_keys(settings, (*SAMPLING, "decoder"), where)
    if "decoder" not in settings:
        return
    decoder = mapping_of(settings["decoder"], f"{where}.decoder")
    names = preset_names("decoder")
    if decoder.get("name") not in names:
        close = suggest(str(decoder.get("name")), names)
        raise UserError(f"{where}.decoder.name={decoder.get('name')} is no strategy.{close}")
    path = config_dir() / "decoder" / f"{decoder['name']}.yaml"
    known_keys(decoder, ("name", *_options_of(path)), f"{where}.decoder")


def _options_of(path: Path) -> list[str]:
    found = read_yaml(path)
    return [key for key in found if not key.startswith("_")]


def score(entry: Any, where: str) -> Mapping[str, Any]:
    """Return one entry of `expected`."""
    entry = mapping_of(entry, where)
    known_keys(entry, (*CONTEXT, *METRICS, *SAMPLING, "decoder"), where)
    positive(entry, "image_size", where)
    scores = [key for key in entry if key in METRICS]
    if "image_size" not in entry or not scores:
        raise UserError(f"{where} needs image_size and a score: {', '.join(METRICS)}.")
    for key in scores:
        if isinstance(entry[key], bool) or not isinstance(entry[key], int | float):
            raise UserError(f"{where}: {key}={entry[key]!r} must be a number.")
    sampling({k: v for k, v in entry.items() if k in (*SAMPLING, "decoder")}, where)
    return entry
