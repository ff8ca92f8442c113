"""The drawings of passes on the families' pages are those of the networks' plans and strategies."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from argen.build import build
from argen.decoding.context import SamplingContext
from argen.generators.plan import Plan
from argen.layers.noise import SeededNoise
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

PAGES = Path(__file__).parents[2] / "docs" / "families"
MARKED = re.compile(r"<!-- (passes|scales|counts) ([\w ]+) -->\n```\n(.*?)```", re.S)
DRAWINGS = [
    (path.stem, *match.groups())
    for path in sorted(PAGES.glob("*.md"))
    for match in MARKED.finditer(path.read_text())
]
NAMES = [f"{page}-{words}" for page, _, words, _ in DRAWINGS]


def numbers(drawing: str, columns: int) -> list[int]:
    """Return the numbers that a drawing begins its lines with, row by row."""
    rows = [re.match(r"\s*(\d+(?:\s+\d+)*)", line) for line in drawing.splitlines()]
    return [int(number) for row in rows if row for number in row[1].split()[:columns]]


def plan_of(name: str, *options: str) -> Plan:
    """Return the plan of a tiny preset on a grid of 4x4 codes."""
    grid, arguments = (4, 4), {}
    if name == "xar":
        spec = CodeSpec("continuous", (Segment(grid, dim=4),))
        arguments = {"entity": options[0], "entity_size": int(options[1])}
    elif name in ("open_magvit2", "subtoken"):
        count = int(options[0]) if options else 2
        spec = CodeSpec("discrete", (Segment(grid, vocab_sizes=(8,) * count),))
        name = "open_magvit2"
    elif name == "elm":
        spec = CodeSpec("binary", (Segment(grid, bits=8),))
    else:
        spec = CodeSpec("discrete", (Segment(grid, vocab_sizes=(16,)),))
        arguments = {"order": options[0]} if options else {}
    config = for_codes(preset("generator", f"tiny_{name}"), spec)
    with torch.device("meta"):
        return build(config, **arguments).plan


def test_every_generator_has_a_drawing() -> None:
    drawn = {page for page, *_ in DRAWINGS}
    assert drawn == {
        *("vqgan", "llamagen", "rar", "open_magvit2", "ibq", "wetok", "elm", "var", "nar"),
        *("maskgit", "mar", "xar"),
    }


@pytest.mark.parametrize(("page", "kind", "words", "drawing"), DRAWINGS, ids=NAMES)
def test_drawing(page: str, kind: str, words: str, drawing: str) -> None:
    name, *options = words.split()
    if kind == "passes":
        assert numbers(drawing, 4) == plan_of(name, *options).group_of().tolist()
    elif kind == "scales":
        sides = [int(side) for side in words.split()]
        spec = CodeSpec(
            "discrete", tuple(Segment((side, side), vocab_sizes=(16,)) for side in sides)
        )
        sizes = Plan.by_segment(spec).sizes
        assert Counter(numbers(drawing, sum(sides))) == dict(enumerate(sizes))
    else:
        counts = [int(number) for number in options]
        assert counts == passes_of(name, steps=len(counts))
        assert Counter(numbers(drawing, 4)) == dict(enumerate(counts))


def passes_of(decoder: str, *, steps: int) -> list[int]:
    """Return how many of 16 codes each pass of a masked strategy makes final."""
    segments = {
        "maskgit": CodeSpec("discrete", (Segment((4, 4), vocab_sizes=(16,)),)),
        "mar": CodeSpec("continuous", (Segment((4, 4), dim=4),)),
    }
    name = {"confidence": "maskgit", "masked": "mar"}[decoder]
    torch.manual_seed(0)
    generator = build(for_codes(preset("generator", f"tiny_{name}"), segments[name])).eval()
    strategy = build({**preset("decoder", decoder), "steps": steps})
    told = []
    with torch.no_grad():
        result = strategy(
            generator,
            generator.conditioner(torch.tensor([0])),
            SamplingContext(
                noise=SeededNoise([0]),
                observer=lambda positions, codes, outputs: told.append(positions.shape[1]),
            ),
        )
    # `confidence` tells of all its candidates, and says itself how many it kept.
    return told if result.accepted is None else result.accepted[:, 0].tolist()
