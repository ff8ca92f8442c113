"""The statistics of codes as one page of plots, PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from argen.runtime.files import replacing

DARK, LIGHT, WARM = "#1f4e79", "#9dbcd8", "#c8553d"
LABELLED = 24  # classes up to which each is named


def write_page(path: Path, statistics: dict[str, Any]) -> None:
    """Draw what `token_statistics` returned; no display is needed."""
    figure = Figure(figsize=(15, 12.5), dpi=100, layout="constrained")
    unigram = statistics["unigram"]
    figure.suptitle(
        f"{statistics['described']}\n{statistics['images']:,} of {statistics['of_images']:,} "
        f"images, {unigram['tokens']:,} codes, tokenizer {statistics['tokenizer']}",
        fontsize=13,
    )
    axes = figure.subplots(3, 3)
    draw = (_numbers, _zipf, _innovation, _positions, _neighbours, _ngrams)
    for place, one in zip(axes.flat, (*draw, _compression, _classes, _parts), strict=True):
        one(place, statistics)
    # A file object leaves no doubt about the format where the temporary name has another ending.
    with replacing(path) as temporary, temporary.open("wb") as file:
        figure.savefig(file, format="png", metadata={"Software": "argen"})


def _numbers(place: Axes, statistics: dict[str, Any]) -> None:
    unigram, zipf, new = (statistics[key] for key in ("unigram", "zipf", "innovation"))
    usage = "" if unigram["usage"] is None else f" ({unigram['usage']:.1%})"
    size = unigram["vocabulary"]
    vocabulary = f"2^{unigram['vocabulary_bits']:.0f}" if size is None else f"{size:,}"
    rows = [
        ("vocabulary", vocabulary),
        ("codes in use", f"{unigram['distinct']:,}{usage}"),
        ("entropy", f"{unigram['entropy_bits']:.3f} bits"),
        ("   bias-corrected", f"{unigram['entropy_bits_corrected']:.3f} bits"),
        ("perplexity", f"{unigram['perplexity']:,.1f}"),
        ("most frequent code", f"{unigram['most_frequent_share']:.2%}"),
        ("Zipf exponent", "none" if zipf["exponent"] is None else f"{zipf['exponent']:.3f}"),
        ("Heaps exponent", f"{new['heaps_exponent']:.3f}"),
        ("new codes an image, at the end", f"{new['last_tenth_new_per_image']:.3g}"),
    ]
    told = statistics["classes"]
    if told is not None:
        rows.append(("a code tells of the class", f"{told['information_bits']:.3f} bits"))
        rows.append(("   by chance", f"{told['chance_bits']:.3f} bits"))
    place.set_axis_off()
    place.set_title("in numbers")
    for line, (name, value) in enumerate(rows):
        height = 0.95 - line * 0.087
        place.text(0.0, height, name, fontsize=11, va="center")
        place.text(1.0, height, value, fontsize=11, va="center", ha="right", family="monospace")


def _zipf(place: Axes, statistics: dict[str, Any]) -> None:
    zipf = statistics["zipf"]
    ranks, counts = np.array(zipf["ranks"]), np.array(zipf["counts"])
    place.loglog(ranks, counts, ".", color=DARK, label="counted")
    if zipf["exponent"] is not None:
        every = np.arange(1, ranks[-1] + 1, dtype=np.float64)
        law = every ** -zipf["exponent"]
        line = law / law.sum() * statistics["unigram"]["tokens"]
        place.loglog(
            ranks, line[ranks - 1], color=WARM,
            label=f"rank^-{zipf['exponent']:.2f}, misfit {zipf['misfit']:.2f}",
        )  # fmt: skip
    place.set(title="Zipf: rank and frequency", xlabel="rank of the code", ylabel="times seen")
    place.legend()


def _innovation(place: Axes, statistics: dict[str, Any]) -> None:
    new = statistics["innovation"]
    place.loglog(new["images"], new["words"], color=DARK)
    size = statistics["unigram"]["vocabulary"]
    if size is not None and size < 100 * new["words"][-1]:
        place.axhline(size, color=LIGHT, linestyle="--", label="vocabulary")
        place.legend()
    place.set(
        title="innovation: different codes seen",
        xlabel="images looked at",
        ylabel="different codes",
    )


def _positions(place: Axes, statistics: dict[str, Any]) -> None:
    found, segments = statistics["positions"], statistics["segments"]
    values = found["entropy_bits"]
    visible = found["most_that_can_be_seen_bits"]
    h, w = segments[0]["shape"]
    if len(segments) == 1 and min(h, w) > 1:
        image = place.imshow(np.array(values).reshape(h, w), cmap="viridis")
        place.figure.colorbar(image, ax=place, label="bits")
    else:
        place.plot(values, color=DARK, linewidth=1)
        lengths = [segment["shape"][0] * segment["shape"][1] for segment in segments]
        for start in np.cumsum(lengths)[:-1]:
            place.axvline(start - 0.5, color=LIGHT, linewidth=0.8)
        place.set(xlabel="position" if len(segments) == 1 else "position, scale by scale")
        place.set_ylabel("bits")
    place.set_title(f"entropy of each position (at most {visible:.1f} visible)")


def _neighbours(place: Axes, statistics: dict[str, Any]) -> None:
    segment = statistics["segments"][-1]
    rows = segment["neighbours"]
    h, w = segment["shape"]
    place.set_title(f"what a code tells of its neighbour ({h}x{w})")
    names = [f"{row['direction']}\n{row['distance']}" for row in rows]
    at = np.arange(len(rows))
    keys = (("bits", "counted", DARK), ("position_bits", "same place, other image", LIGHT))
    for shift, (key, label, colour) in enumerate((*keys, ("chance_bits", "shuffled", WARM))):
        heights = [row[key] for row in rows]
        place.bar(at + (shift - 1) * 0.27, heights, 0.27, color=colour, label=label)
    place.set_xticks(at, names)
    place.set(ylabel="mutual information, bits")
    if rows:
        place.set_ylim(top=1.35 * max(row["bits"] for row in rows) or 1)  # room for the legend
        place.legend()


def _ngrams(place: Axes, statistics: dict[str, Any]) -> None:
    rows = statistics["ngrams"]
    at = [row["n"] for row in rows]
    for key, label, colour in (
        ("conditional_bits", "counted", DARK),
        ("shuffled_conditional_bits", "shuffled", WARM),
    ):
        place.plot(at, [row[key] for row in rows], "o-", color=colour, label=label)
    for row in rows:
        note = f"{row['once']:.0%} once"
        place.annotate(
            note,
            (row["n"], row["conditional_bits"]),
            textcoords="offset points",
            xytext=(0, 8),
            ha="center",
        )
    place.set_xticks(at)
    place.margins(x=0.15)
    place.set_ylim(0, 1.2 * rows[0]["conditional_bits"] or 1)
    place.set(title="bits of the last of n codes in a row", xlabel="n", ylabel="bits")
    place.legend()


def _compression(place: Axes, statistics: dict[str, Any]) -> None:
    bits = statistics["compression_bits_per_code"]
    rows = (
        ("uniform", LIGHT), ("unigram_entropy", LIGHT), ("adaptive_unigram", LIGHT),
        ("shuffled_zlib", WARM), ("zlib", DARK), ("shuffled_lzma", WARM), ("lzma", DARK),
    )  # fmt: skip
    shown = [(key, colour) for key, colour in rows if bits[key] is not None]
    values = [bits[key] for key, _ in shown]
    names = [key.replace("_", " ") for key, _ in shown]
    drawn = place.barh(names, values, color=[colour for _, colour in shown])
    place.bar_label(drawn, fmt="%.2f", padding=3)
    place.set_xlim(right=max(values) * 1.15)
    place.invert_yaxis()
    place.set(title="compressed size", xlabel="bits a code")


def _classes(place: Axes, statistics: dict[str, Any]) -> None:
    found = statistics["classes"]
    place.set_title("classes: divergence from the others")
    if found is None:
        _say(place, "one class")
        return
    rows = sorted(found["classes"], key=lambda row: -row["bits"])
    place.set(ylabel="Jensen-Shannon, bits")
    if len(rows) > LABELLED:
        place.plot([row["bits"] for row in rows], color=DARK, label="counted")
        place.plot([row["chance_bits"] for row in rows], ".", color=WARM, label="labels shuffled")
        place.set(xlabel="class, by divergence")
    else:
        at = np.arange(len(rows))
        place.bar(at - 0.2, [r["bits"] for r in rows], 0.4, color=DARK, label="counted")
        chance = [r["chance_bits"] for r in rows]
        place.bar(at + 0.2, chance, 0.4, color=WARM, label="labels shuffled")
        tilt = 0 if len(rows) <= 6 else 60
        place.set_xticks(at, [row["class"] for row in rows], rotation=tilt)
    place.legend()


def _parts(place: Axes, statistics: dict[str, Any]) -> None:
    found = statistics["parts"]
    if found is None:
        zipf = statistics["zipf"]
        place.semilogx(zipf["ranks"], zipf["cumulative_shares"], ".-", color=DARK)
        place.set(
            title="share of all codes by the most frequent ones",
            xlabel="so many of the most frequent", ylabel="share of all positions", ylim=(0, 1.02),
        )  # fmt: skip
        return
    place.bar(np.arange(len(found["entropy_bits"])), found["entropy_bits"], color=DARK)
    place.set(
        title=f"{found['of']}: entropy ({found['shared_bits']:.2f} bits shared)",
        xlabel=found["of"], ylabel="bits",
    )  # fmt: skip


def _say(place: Axes, words: str) -> None:
    place.set_axis_off()
    place.text(0.5, 0.5, words, ha="center", va="center")
