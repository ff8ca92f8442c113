"""Scores of one model over sampling settings: which points, their table and their plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from argen.errors import UserError
from argen.pipeline.settings import SETTINGS, controls
from argen.runtime.files import replacing

SHOWN = ("inception_score", "precision", "recall", "class_agreement", "duplicates")

Point = Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Sampling settings to try, and one job's share of them.

    Attributes:
        points: every combination, in the order in which the values were given.
        part: number of this job.
        parts: how many jobs share the points.
    """

    points: tuple[dict[str, Any], ...]
    part: int = 0
    parts: int = 1

    @classmethod
    def from_settings(cls, sweep: Mapping[str, Any]) -> Sweep | None:
        """Return what the settings ask for, None where nothing is swept.

        Args:
            sweep: a list of values of each swept sampling setting (None for the others), `part`
                and `parts`.

        Raises:
            UserError: no list, an empty one, a value twice, one out of range, or no such part.
        """
        axes = {name: sweep[name] for name in SETTINGS if sweep.get(name) is not None}
        if not axes:
            return None
        for name, values in axes.items():
            if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                raise UserError(f"sweep.{name}={values} must be a list, e.g. sweep.{name}=[1,2].")
            if len({str(value) for value in values}) != len(values):
                raise UserError(f"sweep.{name}={list(values)} names a value twice.")
            for value in values:
                controls({name: value})
        part, parts = sweep.get("part", 0), sweep.get("parts", 1)
        if parts < 1 or not 0 <= part < parts:
            raise UserError(
                f"sweep.part={part} must be one of 0 to {parts - 1} (sweep.parts={parts})."
            )
        points = tuple(dict(zip(axes, values)) for values in product(*axes.values()))
        return cls(points, part, parts)

    @property
    def own(self) -> tuple[dict[str, Any], ...]:
        """The points of this job: every `parts`-th from `part` on."""
        return self.points[self.part :: self.parts]


def point_name(point: Point) -> str:
    """Return the stem of a point's file."""
    return ",".join(f"{name}={value}" for name, value in point.items())


def table(done: Sequence[tuple[Point, Mapping[str, Any]]]) -> str:
    """Return a Markdown table of (point, result), best score first."""
    key = done[0][1]["protocol"]["key"]
    names = list(done[0][0])
    extra = [name for name in SHOWN if name in done[0][1]]
    lines = [[*names, done[0][1]["score_name"], *extra], ["---"] * (len(names) + 1 + len(extra))]
    for point, result in sorted(done, key=lambda pair: pair[1][key]):
        numbers = [f"{result[name]:.4g}" for name in (key, *extra)]
        lines.append([*(str(value) for value in point.values()), *numbers])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def plot(done: Sequence[tuple[Point, Mapping[str, Any]]], path: Path) -> None:
    """Plot the score over the first swept setting, a line for each choice of the others.

    Values that are words or lists stand side by side in the order in which they were given.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    key, axis = done[0][1]["protocol"]["key"], next(iter(done[0][0]))
    given = list(dict.fromkeys(str(point[axis]) for point, _ in done))
    numeric = all(type(point[axis]) in (int, float) for point, _ in done)
    lines: dict[str, list[tuple[float, float]]] = {}
    for point, result in done:
        others = point_name({k: v for k, v in point.items() if k != axis})
        x = float(point[axis]) if numeric else given.index(str(point[axis]))
        lines.setdefault(others, []).append((x, float(result[key])))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for label, values in lines.items():
        xs, ys = zip(*sorted(values))
        axes.plot(xs, ys, marker="o", label=label or None)
    if not numeric:
        axes.set_xticks(range(len(given)), given)
    axes.set_xlabel("guidance scale (cfg)" if axis == "cfg" else axis)
    axes.set_ylabel(done[0][1]["score_name"])
    if any(lines):
        axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    with replacing(path) as temporary, temporary.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)
