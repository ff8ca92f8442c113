"""Load a model directory and draw images: the smallest use of argen.

    python examples/load_and_sample.py outputs/quickstart/model sheet.png
    python examples/load_and_sample.py outputs/quickstart/model out.png --classes flags --cfg 3

Image i has seed `--seed` + i, so the same command draws the same images, whatever the batch size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import argen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model directory of argen train or convert")
    parser.add_argument("out", type=Path, help="PNG file for the sheet, a row a class")
    parser.add_argument("--classes", nargs="*", help="names or ids; all of them when left out")
    parser.add_argument("--n", type=int, default=4, help="images a class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cfg", type=float, default=2.0, help="guidance scale, 1 for none")
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = argen.load(options.model, device=device)
    print(f"codes: {pipe.tokenizer.spec.describe()}; classes: {', '.join(pipe.class_names)}")

    samples = pipe(
        options.classes or "all", n=options.n, seed=options.seed, cfg=options.cfg, temperature=1.0
    )
    samples.grid().save(options.out)

    # The codes are an image's other form: decoding them gives the image again.
    again = pipe.decode(samples.codes).cpu()
    print(f"largest difference after decoding anew: {(again - samples.images).abs().max():.1e}")
    print(f"{len(samples)} images, {samples.passes} passes each: {options.out}")


if __name__ == "__main__":
    main()
