"""Which key each image of a call has: no two calls share images, and a key samples one again."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from argen.build import build
from argen.images.files import save_image
from argen.pipeline import Pipeline
from argen.pipeline.keys import image_keys
from argen.runtime.presets import for_codes, preset


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    torch.manual_seed(0)
    tokenizer = build(preset("tokenizer", "tiny_vq")).eval()
    config = for_codes(preset("generator", "tiny_gpt"), tokenizer.spec, num_classes=3)
    return Pipeline(
        tokenizer=tokenizer, generator=build(config).eval(), class_names=("a", "b", "c")
    )


def test_neighbouring_seeds_share_no_key() -> None:
    keys = [key for seed in range(20) for key in image_keys(seed, 2000)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**48 for key in keys)


def test_the_first_image_has_the_seed_and_longer_calls_begin_alike() -> None:
    assert image_keys(7, 1) == [7]
    assert image_keys(7, 9)[:4] == image_keys(7, 4)
    assert image_keys(2**40 + 1, 2)[0] == 2**40 + 1
    assert image_keys(-3, 3) != image_keys(3, 3)


def test_images_of_neighbouring_seeds_differ_and_a_key_gives_one_again(pipe: Pipeline) -> None:
    first, second = (pipe(["a"], n=6, seed=seed) for seed in (0, 1))
    codes = torch.cat([first.codes, second.codes])
    assert len(codes.unique(dim=0)) == 12, "with seed + i, five of the six were the same"
    for i in (0, 3, 5):
        alone = pipe(["a"], n=1, seed=first.seeds[i])
        assert alone.seeds == [first.seeds[i]]
        assert torch.equal(alone.codes[0], first.codes[i])


def test_a_saved_grid_says_the_key_of_each_of_its_images(pipe: Pipeline, tmp_path) -> None:
    samples = pipe(["a", "c"], n=3, seed=4)
    save_image(samples.grid(), tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        rows = json.loads(grid.text["argen"])
    assert rows == [
        {"name": "a", "seeds": samples.seeds[:3]},
        {"name": "c", "seeds": samples.seeds[3:]},
    ]
    again = pipe(["c"], seed=rows[1]["seeds"][2])
    assert torch.equal(again.codes[0], samples.codes[5])
