"""Complete an image: a part of it is given, a model draws the rest.

    python examples/inpaint.py outputs/quickstart/model half.png completed.png
    python examples/inpaint.py outputs/quickstart/model face.png out.png --keep border --share 0.4

A code is given when all pixels of its cell are kept; the other codes are drawn around the given
ones. `argen sample image=FILE keep=...` is the same by command (docs/generators.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from torchvision.transforms.v2 import functional as F

import argen
from argen.pipeline.inpainting import kept_pixels, known_codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model directory with a generator")
    parser.add_argument("image", type=Path, help="image that is given in part")
    parser.add_argument("out", type=Path, help="PNG file: the given image, then the completions")
    parser.add_argument(
        "--keep",
        default="top",
        choices=["top", "bottom", "left", "right", "centre", "border"],
        help="the part that is kept",
    )
    parser.add_argument("--share", type=float, default=0.5, help="how much of the sides is kept")
    parser.add_argument("--label", default="0", help="name or id of the class")
    parser.add_argument("--n", type=int, default=4, help="completions")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    pipe = argen.load(options.model)
    height, width = pipe.tokenizer.image_size
    given = Image.open(options.image).convert("RGB").resize((width, height))
    image = F.pil_to_tensor(given).float() / 127.5 - 1  # (3, H, W) in [-1, 1]

    kept_HW = kept_pixels((height, width), options.keep, options.share)
    known = known_codes(pipe.tokenizer, image, kept_HW)
    print(f"{len(known[0])} of {pipe.tokenizer.spec.length} codes are given")

    label = int(options.label) if options.label.isdigit() else options.label
    samples = pipe([label], n=options.n, seed=options.seed, known=known)
    assert bool((samples.codes[:, known[0]] == known[1]).all())  # given codes are not drawn anew

    # The kept pixels as they are, the rest as the tokenizer decodes it.
    samples.images = image.where(kept_HW, samples.images)
    samples.grid([("given", image.where(kept_HW, 1.0)[None])]).save(options.out)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
