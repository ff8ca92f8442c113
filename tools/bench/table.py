"""Measured rows as a Markdown table, with the ratio to the bound and to an earlier run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def markdown(result: Mapping[str, Any], against: Mapping[str, Any] | None = None) -> str:
    """Return the table of a result file.

    Columns: labels, time of a call (median, spread), rate, times faster than each of the row's
    bases, share of the bound, memory beyond what was held, further numbers, and the time against
    another file's.
    """
    rows = result["rows"]
    labels = _keys(row["labels"] for row in rows)
    numbers = _keys(row.get("numbers", {}) for row in rows)
    before = {_key(row["labels"]): row for row in (against or {}).get("rows", ())}
    header = [*labels, "time", "spread", "rate"]
    compared = _keys(row.get("bases", {}) for row in rows)
    columns = {
        **{name: [_times_base(row, name, rows) for row in rows] for name in compared},
        "x bound": [_times_bound(row) for row in rows],
        "MFU": [_utilisation(row, result.get("ceilings", {})) for row in rows],
        "extra MB": [_memory(row) for row in rows],
        **{name: [_number(row.get("numbers", {}).get(name)) for row in rows] for name in numbers},
    }
    if against is not None:
        columns["x before"] = [_times_before(row, before) for row in rows]
    columns = {"ms/pass": [_pass(row) for row in rows], **columns}
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    lines = [[*header, *shown], ["---"] * (len(header) + len(shown))]
    for i, row in enumerate(rows):
        spread = (row["slowest_seconds"] - row["fastest_seconds"]) / row["median_seconds"]
        lines.append(
            [
                *(str(row["labels"].get(name, "")) for name in labels),
                duration(row["median_seconds"]),
                f"{spread:.0%}",
                f"{_number(row['units'] / row['median_seconds'])} {row['unit']}/s",
                *(cells[i] for cells in shown.values()),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def profiles(result: Mapping[str, Any]) -> str:
    """Return a line a row that was profiled: its operations by their share of the busy time."""
    lines = []
    for row in result["rows"]:
        if "profile" in row:
            name = " ".join(str(value) for value in row["labels"].values())
            shares = ", ".join(f"`{key}` {share:.0%}" for key, share in row["profile"].items())
            lines.append(f"- {name}: {shares}")
    return "\n".join(lines)


def about(result: Mapping[str, Any]) -> str:
    """Return one line on the machine that a result comes from."""
    facts, found = result["machine"], result["ceilings"]
    place = facts.get("gpu") or f"{facts['cpu']}, {facts['threads']} threads"
    return (
        f"{place}, torch {facts['torch']}: {found['bytes_per_second'] / 1e9:.1f} GB/s, "
        f"{found['float32_flops_per_second'] / 1e9:,.0f} GFLOP/s in float32, "
        f"{found['bfloat16_flops_per_second'] / 1e9:,.0f} in bfloat16"
    )


def duration(seconds: float) -> str:
    """Return seconds with a unit that suits them."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _keys(mappings: Any) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _key(labels: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in labels.items()))


def _number(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _pass(row: Mapping[str, Any]) -> str:
    """Return milliseconds a pass, where a call makes nothing but passes of one batch or several."""
    numbers, batch = row.get("numbers", {}), row["labels"].get("batch")
    if "passes" not in numbers or "PNG %" in numbers or not batch:
        return ""
    return _number(1e3 * row["median_seconds"] * batch / row["units"] / numbers["passes"])


def _memory(row: Mapping[str, Any]) -> str:
    return f"{row['extra_mb']:,.0f}" if row["extra_mb"] else ""  # none of this process


def _times_base(row: Mapping[str, Any], name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    if name not in row.get("bases", {}):
        return ""
    wanted = {**row["labels"], **row["bases"][name]}
    for other in rows:
        if other is not row and _key(other["labels"]) == _key(wanted):
            mine, theirs = (r["median_seconds"] / r["units"] for r in (row, other))
            return f"{theirs / mine:.2f}"
    return ""


def _times_bound(row: Mapping[str, Any]) -> str:
    return f"{row['median_seconds'] / row['bound_seconds']:.2f}" if row["bound_seconds"] else ""


def _utilisation(row: Mapping[str, Any], found: Mapping[str, float]) -> str:
    """Return FLOPs a second as a share of the data sheet's peak."""
    peak = found.get(f"{row['dtype']}_peak_by_data_sheet")
    return f"{row['flops'] / row['median_seconds'] / peak:.1%}" if peak and row["flops"] else ""


def _times_before(row: Mapping[str, Any], before: Mapping[Any, Mapping[str, Any]]) -> str:
    other = before.get(_key(row["labels"]))
    return f"{other['median_seconds'] / row['median_seconds']:.2f}" if other else ""
