"""Train a tokenizer and a generator on a folder of images, one sub-directory a class.

    python examples/own_images.py photos outputs
    python examples/own_images.py photos outputs --steps 2000 --size 32

The settings are tiny: images of 16 pixels and a few hundred steps, which take a minute or two on a
CPU and show that the data is read as you meant it. What is written here as a list of settings is
what one types after `python -m argen.train`; for real images start from `experiment=quickstart` or
`experiment=emoji` (docs/install.md). Run again, it goes on where it was, or skips what is finished.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder with one sub-directory a class")
    parser.add_argument("out", type=Path, help="where runs go; this one is OUT/own")
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of each stage")
    parser.add_argument("--size", type=int, default=16, help="side of the images in pixels")
    options = parser.parse_args()

    settings = [
        "name=own",
        f"out={options.out}",
        "data=folder",
        f"data.path={options.images}",
        f"data.image_size={options.size}",
        "data.flip=false",  # mirrored letters and digits are other letters and digits
        "tokenizer=tiny_fsq",
        f"tokenizer.image_size={options.size}",
        "generator=tiny_gpt",
        f"fit.steps={options.steps}",
        f"fit.val_every={options.steps}",
        f"fit.save_every={max(1, options.steps // 4)}",
        "optim.lr=2e-3",
        "codes.views=1",  # no augmented copies of the images
        "samples.per_class=4",
        "evaluate=null",  # no scores at the end: they want hundreds of images
    ]
    subprocess.run([sys.executable, "-m", "argen.train", *settings], check=True)

    run = options.out / "own"
    scores = json.loads((run / "metrics.json").read_text())
    print({name: round(value, 3) for name, value in scores.items() if isinstance(value, float)})
    print(f"model directory: {run / 'model'}; drawn at the end: {run / 'samples.png'}")


if __name__ == "__main__":
    main()
