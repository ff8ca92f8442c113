"""The tables of benchmarks/README.md, made from the JSON files that tools/bench.py wrote.

    python tools/bench_tables.py --write    bring the page up to date
    python tools/bench_tables.py --check    exit 1 if it is not

A table stands between `<!-- bench FILE -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bench.table import about, markdown, profiles

PAGE = Path(__file__).parents[1] / "benchmarks" / "README.md"
BLOCK = re.compile(r"(<!-- bench (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """Return the page with every table made anew."""

    def block(match: re.Match[str]) -> str:
        result = json.loads((PAGE.parent / match[2]).read_text())
        text = f"`{result['command']}`\n\n{about(result)}.\n\n{markdown(result)}\n"
        if found := profiles(result):
            text += f"\nBusy time by operation:\n\n{found}\n"
        return f"{match[1]}\n{text}\n{match[4]}"

    return BLOCK.sub(block, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="bring the page up to date")
    parser.add_argument("--check", action="store_true", help="exit 1 if it is not")
    given = parser.parse_args()
    page = PAGE.read_text()
    if given.write:
        PAGE.write_text(filled(page))
    elif given.check:
        sys.exit(0 if filled(page) == page else f"{PAGE} is out of date: run with --write.")
    else:
        print(filled(page))


if __name__ == "__main__":
    main()
