"""The Halton order: positions that follow one another lie far apart (arXiv 2503.17076)."""

from __future__ import annotations

from argen.spec import CodeSpec


def radical_inverse(number: int, base: int) -> float:
    """Return the digits of `number` mirrored behind the point, in [0, 1)."""
    value, place = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        place /= base
        value += digit * place
    return value


def halton_grid(height: int, width: int) -> list[int]:
    """Return the raster positions of a grid in the order a Halton sequence first meets them.

    Rows follow base 2 and columns base 3; a single row or column follows base 2 alone.
    """
    bases = (2, 2) if 1 in (height, width) else (2, 3)
    order: dict[int, None] = {}
    number = 0
    while len(order) < height * width:
        number += 1
        row = int(radical_inverse(number, bases[0]) * height)
        column = int(radical_inverse(number, bases[1]) * width)
        order.setdefault(row * width + column)
    return list(order)


def halton_order(spec: CodeSpec) -> list[int]:
    """Return all positions of a spec in Halton order; segments are interleaved evenly."""
    ranked, start = [], 0
    for segment in spec.segments:
        cells = halton_grid(*segment.shape)
        ranked += [((i + 0.5) / len(cells), start + cell) for i, cell in enumerate(cells)]
        start += len(cells)
    return [position for _, position in sorted(ranked)]
