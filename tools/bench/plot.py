"""Measured rates as dots, with the machine's bound as a stroke beside each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from argen.runtime.files import replacing
from bench.table import about


def save_plot(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: a dot a row of a result file, rows of one strategy or mode in one colour.

    Args:
        result: what `tools/bench.py` wrote.
        path: of the PNG.
    """
    rows = result["rows"]
    names = list(dict.fromkeys(key for row in rows for key in row["labels"]))
    varied = [n for n in names if len({str(row["labels"].get(n)) for row in rows}) > 1]
    kinds = [str(row["labels"].get(names[-1], "")) for row in rows]
    colours = {kind: f"C{i % 10}" for i, kind in enumerate(dict.fromkeys(kinds))}
    figure = Figure(figsize=(8, 1.2 + 0.27 * len(rows)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for place, (row, kind) in enumerate(zip(rows, kinds)):
        rate = row["units"] / row["median_seconds"]
        axes.plot(rate, place, "o", color=colours[kind])
        axes.annotate(
            f"{rate:.3g}", (rate, place), xytext=(6, 0), textcoords="offset points",
            va="center", fontsize=7,
        )  # fmt: skip
        if row["bound_seconds"]:
            best = row["units"] / row["bound_seconds"]
            axes.plot([best, best], [place - 0.4, place + 0.4], color="black", linewidth=1.5)
    texts = [_text({n: row["labels"].get(n, "") for n in varied or names}) for row in rows]
    axes.set_yticks(range(len(rows)), texts, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"{rows[0]['unit']}/s; black: what the machine allows")
    axes.set_title(about(result), fontsize=7)
    axes.grid(axis="x", alpha=0.3)
    with replacing(path) as temporary, temporary.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)


def _text(labels: Mapping[str, Any]) -> str:
    return " ".join(f"{k} {v}" if isinstance(v, int) else str(v) for k, v in labels.items())
