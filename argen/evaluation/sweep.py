"""Scores of one model over sampling settings: which points, their table and their plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from argen.errors import UserError
from argen.runtime.files import replacing

SWEPT = ("cfg", "top_k", "top_p", "min_p", "temperature")
SHOWN = ("inception_score", "precision", "recall", "class_agreement", "duplicates")


def points(sweep: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the sampling settings of every combination, in the order they were given.

    Args:
        sweep: values of some of `SWEPT`; None or a missing name is not swept.

    Raises:
        UserError: nothing to sweep, an empty list or a value twice.
    """
    axes = {name: sweep[name] for name in SWEPT if sweep.get(name) is not None}
    if not axes:
        raise UserError(f"Nothing to sweep: give lists, e.g. sweep.cfg=[1,2,4], of {SWEPT}.")
    for name, values in axes.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise UserError(f"sweep.{name}={values} must be a list, e.g. sweep.{name}=[1,2].")
        if len(set(values)) != len(values):
            raise UserError(f"sweep.{name}={list(values)} names a value twice.")
    return [dict(zip(axes, values)) for values in product(*axes.values())]


def share(all_points: list[Any], part: int, parts: int) -> list[Any]:
    """Return every `parts`-th point from `part` on, for one of several jobs.

    Raises:
        UserError: if there is no such part.
    """
    if parts < 1 or not 0 <= part < parts:
        raise UserError(f"sweep.part={part} must be one of 0 to {parts - 1} (sweep.parts={parts}).")
    return all_points[part::parts]


def point_name(point: Mapping[str, Any]) -> str:
    """Return the stem of a point's file."""
    return ",".join(f"{name}={value}" for name, value in point.items())


def table(done: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    """Return a Markdown table of (point, result), best score first."""
    key = done[0][1]["protocol"]["key"]
    names = list(done[0][0])
    extra = [name for name in SHOWN if name in done[0][1]]
    lines = [[*names, done[0][1]["score_name"], *extra], ["---"] * (len(names) + 1 + len(extra))]
    for point, result in sorted(done, key=lambda pair: pair[1][key]):
        numbers = [f"{result[name]:.4g}" for name in (key, *extra)]
        lines.append([*(str(value) for value in point.values()), *numbers])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def plot(done: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], path: Path) -> None:
    """Draw the score over the first swept setting, a line for each choice of the others."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    key, axis = done[0][1]["protocol"]["key"], next(iter(done[0][0]))
    lines: dict[str, list[tuple[float, float]]] = {}
    for point, result in done:
        others = point_name({k: v for k, v in point.items() if k != axis})
        lines.setdefault(others, []).append((float(point[axis]), float(result[key])))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for label, values in lines.items():
        x, y = zip(*sorted(values))
        axes.plot(x, y, marker="o", label=label or None)
    axes.set_xlabel("guidance scale (cfg)" if axis == "cfg" else axis)
    axes.set_ylabel(done[0][1]["score_name"])
    if any(lines):
        axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    with replacing(path) as temporary, temporary.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)
