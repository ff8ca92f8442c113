"""8-bit rounding and folders of samples, good and bad."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from argen.errors import UserError
from argen.images.files import read_images
from argen.images.pixels import to_float, to_uint8


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(5):
        pixels = generator.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def test_all_256_levels_survive():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
    between = torch.tensor([10.6 / 127.5 - 1])
    assert (to_uint8(between).item(), to_uint8(between, rounding="truncate").item()) == (11, 10)


def test_nan_is_refused():
    with pytest.raises(UserError, match="not finite"):
        to_uint8(torch.tensor([0.0, math.nan]))


def test_a_folder_is_read_in_order(folder):
    batches = list(read_images(folder, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    pixels = np.array(Image.open(folder / "3.png"))
    assert torch.equal(batches[1][1].permute(1, 2, 0), torch.from_numpy(pixels))


def test_folder_problems_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="5 images, but at least 6"):
        read_images(folder, least=6)
    with pytest.raises(UserError, match="no folder"):
        read_images(folder / "absent")
    Image.new("RGB", (8, 8)).save(folder / "7.png")
    with pytest.raises(UserError, match=r"7\.png is 8x8 but 0\.png is 12x8"):
        read_images(folder)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_images_that_are_not_rgb_are_named(folder, mode):
    Image.new(mode, (12, 8)).save(folder / "9.png")
    with pytest.raises(UserError, match=rf"9\.png has mode {mode}"):
        list(read_images(folder))


def test_a_cut_file_is_named(folder):
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"2\.png is not a readable image"):
        list(read_images(folder))


def test_an_empty_folder_says_what_it_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(UserError, match=r"no images \(\.png"):
        read_images(tmp_path)
