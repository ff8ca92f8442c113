"""The tables of benchmarks/README.md and docs/, made from the JSON files that tools/bench.py wrote.

    python tools/bench_tables.py --write    bring the page up to date
    python tools/bench_tables.py --check    exit 1 if it is not

A table stands between `<!-- bench FILE -->` and `<!-- end -->`, FILE under benchmarks/, or several
of one machine: `DIR/*.json`. With `<!-- bench FILE plot -->` the plot follows, drawn anew by
--write.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bench.plot import save_plot
from bench.table import about, markdown, profiles

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks"
PAGES = (RESULTS / "README.md", ROOT / "docs" / "decoding.md")
BLOCK = re.compile(r"(<!-- bench (\S+?)( plot)? -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def filled(page: Path, *, draw: bool = False) -> str:
    """Return a page with every table made anew; `draw` writes its plots too."""

    def block(match: re.Match[str]) -> str:
        paths = sorted(RESULTS.glob(match[2]))
        if not paths:
            sys.exit(f"{page}: there is no {RESULTS / match[2]}.")
        results = [json.loads(path.read_text()) for path in paths]
        commands = "\n".join(result["command"] for result in results)
        said = f"`{commands}`" if len(results) == 1 else f"```bash\n{commands}\n```"
        # Ceilings of the first: the files are of one machine.
        whole = {**results[0], "rows": [row for result in results for row in result["rows"]]}
        text = f"{said}\n\n{about(whole)}.\n\n{markdown(whole)}\n"
        if match[3]:
            plot = paths[0].with_suffix(".png")
            if draw:
                save_plot(whole, plot)
            text += f"\n![rates of {plot.stem}]({os.path.relpath(plot, page.parent)})\n"
        if found := profiles(whole):
            text += f"\nBusy time by operation:\n\n{found}\n"
        return f"{match[1]}\n{text}\n{match[5]}"

    return BLOCK.sub(block, page.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="bring the page up to date")
    parser.add_argument("--check", action="store_true", help="exit 1 if it is not")
    given = parser.parse_args()
    for page in PAGES:
        if given.write:
            page.write_text(filled(page, draw=True))
        elif given.check:
            if filled(page) != page.read_text():
                sys.exit(f"{page} is out of date: run with --write.")
        else:
            print(filled(page))


if __name__ == "__main__":
    main()
