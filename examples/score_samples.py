"""Score images that somebody made against a folder of real ones.

    python examples/score_samples.py samples photos scores.json
    python examples/score_samples.py drawn.npz photos scores.json --protocol fd_lite

The samples are a folder of PNG files of one size or an .npz with `arr_0` uint8 (N, H, W, 3);
nothing is resized or converted, because that changes a score. `fd_lite` is a Fréchet distance on
EfficientNet-Lite0 features that needs no download; it is **not** FID. docs/evaluation.md lists the
protocols for published scores and the files that they need.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", type=Path, help="folder of images of one size, or an .npz")
    parser.add_argument("real", type=Path, help="folder of real images, one sub-directory a class")
    parser.add_argument("out", type=Path, help="JSON file for the result")
    parser.add_argument("--protocol", default="fd_lite", help="a name from configs/protocol")
    options = parser.parse_args()

    settings = [
        f"samples={options.samples}",
        "data=folder",
        f"data.path={options.real}",
        f"protocol={options.protocol}",
        "quick=true",  # fewer images than the protocol asks for: the score says so in its name
        f"out={options.out}",
    ]
    subprocess.run([sys.executable, "-m", "argen.evaluate", *settings], check=True)

    result = json.loads(options.out.read_text())
    scores = {name: value for name, value in result.items() if isinstance(value, float)}
    print(f"{result['score_name']}: {json.dumps(scores, indent=2)}")
    for reason in result["not_comparable_because"]:
        print(f"not comparable with published scores: {reason}")


if __name__ == "__main__":
    main()
