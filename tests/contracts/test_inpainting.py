"""An image that is given in part: its codes stay, with every generator whose codes have places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from shipped import make_generator, partner, shared_tokenizer, tiny

from argen.decoding.speculative.jacobi import Jacobi
from argen.errors import IncompatibleError, UserError
from argen.generators.conditioning import ClassConditioner
from argen.pipeline import Pipeline
from argen.pipeline.inpainting import kept_pixels, known_codes, read_mask


def coarse_image(tokenizer):
    draws = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 4, 4, generator=draws) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=tokenizer.image_size, mode="bilinear")[0]


@pytest.mark.parametrize("name", tiny("generator"))
def test_given_codes_stay_and_the_others_vary(name):
    tokenizer, generator = shared_tokenizer(partner(name)), make_generator(name, partner(name))
    if not isinstance(generator.conditioner, ClassConditioner):
        pytest.skip("takes no classes")
    generator.bind(tokenizer)
    pipe = Pipeline(tokenizer=tokenizer, generator=generator.eval())
    kept = kept_pixels(tokenizer.image_size, "top")
    if not tokenizer.spatial:
        with pytest.raises(IncompatibleError, match="no places"):
            known_codes(tokenizer, coarse_image(tokenizer), kept)
        return
    positions, codes = known_codes(tokenizer, coarse_image(tokenizer), kept)
    drawn = pipe([0], n=3, seed=1, known=(positions, codes))
    for row in drawn.codes:
        assert torch.equal(row[positions], codes)
    others = torch.ones(drawn.codes.shape[1], dtype=torch.bool)
    others[positions] = False
    assert not torch.equal(drawn.codes[0][others], drawn.codes[1][others])


def test_known_cells_are_those_that_are_kept_whole():
    tokenizer = shared_tokenizer("tiny_multiscale")
    H, W = tokenizer.image_size
    kept = torch.ones(H, W, dtype=torch.bool)
    kept[0, 0] = False  # one pixel: the first cell of every scale
    positions, _ = known_codes(tokenizer, coarse_image(tokenizer), kept)
    missing = sorted(set(range(tokenizer.spec.length)) - set(positions.tolist()))
    starts, total = [], 0
    for segment in tokenizer.spec.segments:
        starts.append(total)
        total += segment.length
    assert missing == starts


@pytest.mark.parametrize(
    ("keep", "share", "expected"),
    [
        ("top", 0.5, (slice(0, 8), slice(0, 12))),
        ("bottom", 0.25, (slice(12, 16), slice(0, 12))),
        ("left", 0.5, (slice(0, 16), slice(0, 6))),
        ("right", 0.5, (slice(0, 16), slice(6, 12))),
        ("centre", 0.5, (slice(4, 12), slice(3, 9))),
        ([0.5, 0, 1, 0.5], 0.5, (slice(8, 16), slice(0, 6))),
    ],
)
def test_kept_parts(keep, share, expected):
    wanted = torch.zeros(16, 12, dtype=torch.bool)
    wanted[expected] = True
    assert torch.equal(kept_pixels((16, 12), keep, share), wanted)
    if keep == "centre":
        assert torch.equal(kept_pixels((16, 12), "border", share), ~wanted)


def test_bright_pixels_of_a_mask_are_drawn(tmp_path: Path):
    mask = Image.new("L", (8, 4), 0)
    mask.paste(255, (0, 0, 4, 4))
    mask.save(tmp_path / "mask.png")
    kept = read_mask(tmp_path / "mask.png", (8, 16))
    assert not kept[:, :8].any()
    assert kept[:, 8:].all()
    (tmp_path / "broken.png").write_bytes(b"no")
    with pytest.raises(UserError, match="not a readable image"):
        read_mask(tmp_path / "broken.png", (8, 8))


@pytest.mark.parametrize(
    ("keep", "share", "told"),
    [
        ("middle", 0.5, "Unknown keep=middle"),
        ("top", 1.0, "share=1.0 must lie"),
        ([0, 0, 1], 0.5, "must be a box"),
        ([0.5, 0, 0.2, 1], 0.5, "must be a box"),
    ],
)
def test_impossible_parts(keep, share, told):
    with pytest.raises(UserError, match=told):
        kept_pixels((8, 8), keep, share)


def test_too_little_too_much_and_a_decoder_that_takes_none():
    tokenizer, generator = shared_tokenizer("tiny_vq"), make_generator("tiny_gpt", "tiny_vq")
    H, W = tokenizer.image_size
    image = coarse_image(tokenizer)
    with pytest.raises(UserError, match="covers no code wholly"):
        known_codes(tokenizer, image, torch.zeros(H, W, dtype=torch.bool))
    with pytest.raises(UserError, match="nothing to draw"):
        known_codes(tokenizer, image, torch.ones(H, W, dtype=torch.bool))
    known = known_codes(tokenizer, image, kept_pixels((H, W), "top"))
    pipe = Pipeline(tokenizer=tokenizer, generator=generator)
    with pytest.raises(IncompatibleError, match="decoder=sequential, masked or confidence"):
        pipe([0], known=known, decoder=Jacobi())
