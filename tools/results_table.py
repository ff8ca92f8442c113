"""RESULTS.md, made from the scores that are committed under benchmarks/.

    python tools/results_table.py            print the page
    python tools/results_table.py --write    bring RESULTS.md up to date
    python tools/results_table.py --check    exit 1 if it is not

A file counts if it is a JSON object with one of the SCORES below, as `argen train` and
`argen evaluate` write `metrics.json`; other files, such as timings, are left alone. Each directory
gets a table, with the columns that its files have. Runs that differ in their seed alone also get
their median and range in a line below the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BENCHMARKS, PAGE = ROOT / "benchmarks", ROOT / "RESULTS.md"

# Key in the file, and what the column is called; an arrow says which way is better.
SCORES = {
    "fid": "FID ↓",
    "sfid": "sFID ↓",
    "inception_score": "IS ↑",
    "fd_lite": "fd_lite ↓",
    "fd_dinov2": "FD-DINOv2 ↓",
    "factor_over_unigram": "times below unigram ↑",
    "rfid": "rFID ↓",
    "rfd_lite": "rfd_lite ↓",
    "kid": "KID ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "class_agreement": "class agreement ↑",
    "near_copies": "near-copies",
    "psnr_heldout_db": "PSNR, held out, dB ↑",
    "psnr_db": "PSNR, dB ↑",
    "ssim": "SSIM ↑",
    "lpips": "LPIPS ↓",
    "code_usage": "code usage",
    "codes_used": "codes used",
    "bits_per_code_heldout": "bits a code, held out ↓",
}
COSTS = {
    "passes_per_image": "passes an image",
    "images_per_second": "images/s",
}
NONE = "-"
HEADER = """\
# Results

Made by `python tools/results_table.py --write` from the files under `benchmarks/`; a test holds the
two together. Each file also has the protocol with every constant and its hash, sampler settings,
versions and the commit it was made with. Scores compare only within one protocol, data set and
number of samples; `fd_lite` is not FID. (quick): fewer samples than the protocol asks for.
"""


def runs(benchmarks: Path) -> dict[Path, dict[str, Any]]:
    """Return the files with scores, by path, sorted.

    Raises:
        ValueError: a file is not JSON.
    """
    found = {}
    for path in sorted(benchmarks.rglob("*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if isinstance(values, dict) and any(_number(values.get(key)) for key in SCORES):
            found[path] = values
    return found


def page(benchmarks: Path = BENCHMARKS) -> str:
    """Return RESULTS.md."""
    tables: dict[Path, dict[Path, dict[str, Any]]] = {}
    for path, values in runs(benchmarks).items():
        tables.setdefault(path.parent, {})[path] = values
    parts = [HEADER]
    for directory, own in tables.items():
        parts.append(f"## {directory.relative_to(benchmarks).as_posix()}\n\n{table(own)}")
        parts += [f"{line}\n" for line in medians(own)]
    return "\n".join(parts)


def table(own: dict[Path, dict[str, Any]]) -> str:
    """Return the Markdown table of one directory's files, best of its first score on top."""
    every = list(own.values())
    keys = [key for key in (*SCORES, *COSTS) if any(_number(v.get(key)) for v in every)]
    columns: list[tuple[str, Callable[[Path, dict[str, Any]], str]]] = [
        ("run", lambda path, values: f"`{path.stem}`"),
        ("protocol", lambda path, values: _protocol(values)),
    ]
    columns += [
        (
            {**SCORES, **COSTS}[key],
            lambda path, values, key=key: shown(values.get(key)),  # type: ignore[misc]
        )
        for key in keys
    ]
    columns += [
        ("seconds", lambda path, values: shown(_seconds(values))),
        ("commit", lambda path, values: _commit(values)),
    ]
    cells = [[name for name, _ in columns]]
    for path, values in own.items():
        cells.append([make(path, values) for _, make in columns])
    # A column in which nobody has anything says nothing.
    kept = [i for i in range(len(columns)) if any(row[i] != NONE for row in cells[1:])]
    lines = [" | ".join(row[i] for i in kept) for row in cells]
    lines.insert(1, " | ".join("---" for _ in kept))
    return "".join(f"| {line} |\n" for line in lines)


def medians(own: dict[Path, dict[str, Any]]) -> list[str]:
    """Return a line for each group of runs with the same settings and several seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for values in own.values():
        if values.get("settings") is not None and values.get("seed") is not None:
            groups.setdefault(str(values["settings"]), []).append(values)
    lines = []
    for group in groups.values():
        if len({values["seed"] for values in group}) < 2:
            continue
        key = next(key for key in SCORES if _number(group[0].get(key)))
        scores = sorted(values[key] for values in group if _number(values.get(key)))
        lines.append(
            f"{len(scores)} seeds, {SCORES[key][:-2]}: median {shown(statistics.median(scores))}, "
            f"from {shown(scores[0])} to {shown(scores[-1])}."
        )
    return lines


def shown(value: Any) -> str:
    """Return a number with four digits, or a dash."""
    if not _number(value):
        return NONE
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _protocol(values: dict[str, Any]) -> str:
    protocol = values.get("protocol")
    if not isinstance(protocol, dict):
        return NONE
    notes = " (quick)" if values.get("quick") else ""
    if values.get("comparable") is False and not notes:
        notes = " (not comparable)"
    return f"{protocol.get('name', NONE)}, {values.get('samples', '?')} samples{notes}"


def _commit(values: dict[str, Any]) -> str:
    return f"`{str(values['commit'])[:9]}`" if values.get("commit") else NONE


def _seconds(values: dict[str, Any]) -> float | None:
    """Return the time of all stages together, or what the command took."""
    seconds = values.get("seconds")
    if isinstance(seconds, dict):
        return float(sum(seconds.values()))
    return seconds if _number(seconds) else values.get("wall_seconds")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def main() -> int:
    """Print, write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write RESULTS.md")
    parser.add_argument("--check", action="store_true", help="exit 1 if RESULTS.md is out of date")
    options = parser.parse_args()
    made = page()
    if options.write:
        PAGE.write_text(made, encoding="utf-8")
    elif options.check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != made:
            print(
                "RESULTS.md is out of date: python tools/results_table.py --write", file=sys.stderr
            )
            return 1
    else:
        print(made, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
