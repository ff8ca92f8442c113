import numpy as np
import pytest
import torch
from PIL import Image

from argen.data.transforms import Augment, center_crop, flip, resize, shift
from argen.errors import UserError
from argen.images.files import to_rgb, to_tensor
from argen.images.pixels import as_size, to_float

RED, WHITE = (255, 0, 0), (255, 255, 255)


def test_palette_transparency_becomes_white():
    image = Image.new("RGBA", (2, 1), (*RED, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    palette = image.quantize(4)
    palette.info.pop("transparency", None)
    rgb = to_rgb(palette)
    assert [rgb.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert to_rgb(half).getpixel((0, 0)) == (127, 127, 127)


def test_indexed_transparency_becomes_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 1
    assert [to_rgb(palette).getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "F"])
def test_every_mode_gives_rgb(mode):
    rgb = to_rgb(
        Image.new("RGB", (4, 3), RED)
        .convert("L" if mode in ("1", "F") else "RGB")
        .convert("L" if mode == "LA" else "RGB")
        .convert(mode)
    )
    assert (rgb.mode, rgb.size) == ("RGB", (4, 3))
    if mode in ("P", "RGB", "RGBA", "CMYK"):
        assert rgb.getpixel((0, 0)) == RED


def test_sixteen_bit_grey_keeps_its_range():
    levels = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    rgb = to_rgb(Image.fromarray(levels))
    assert [rgb.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_photograph_is_turned_upright():
    image = Image.new("RGB", (4, 2), RED)
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.info["exif"] = exif.tobytes()
    assert to_rgb(image).size == (2, 4)


def test_resize_takes_height_first():
    assert resize(Image.new("RGB", (10, 10)), (4, 6)).size == (6, 4)


@pytest.mark.parametrize("source", [(640, 480), (33, 100), (16, 16), (7, 5), (64, 16)])
@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
def test_center_crop_has_the_size(source, size):
    assert center_crop(Image.new("RGB", source), size).size == (size[1], size[0])


def test_center_crop_keeps_the_centre_and_halves_by_box():
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 4:12] = 200
    pixels[::2, 4:12] = 100
    cropped = np.asarray(center_crop(Image.fromarray(pixels), (4, 4)))
    assert (cropped == 150).all()


def test_shift_moves_and_fills():
    pixels = torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3)
    assert shift(pixels, 1, 0)[0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    assert shift(pixels, 0, -1)[0].tolist() == [[1, 2, 2], [4, 5, 5], [7, 8, 8]]
    assert shift(pixels, 0, 1, pad="white")[0].tolist() == [[255, 0, 1], [255, 3, 4], [255, 6, 7]]
    assert shift(pixels, -5, 0, pad="white").eq(255).all()


def test_augment_is_keyed_by_the_seed_and_covers_its_range():
    pixels = torch.arange(49, dtype=torch.uint8).reshape(1, 7, 7)
    augment = Augment(shift=1, flip=True)
    assert torch.equal(augment(pixels, 5), augment(pixels, 5))
    seen = {augment(pixels, seed).numpy().tobytes() for seed in range(400)}
    assert len(seen) == 3 * 3 * 2
    allowed = {shift(pixels, dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    allowed_bytes = {a.numpy().tobytes() for p in allowed for a in (p, flip(p).contiguous())}
    assert seen == allowed_bytes
    assert Augment()(pixels, 1) is pixels


def test_pixels_map_to_minus_one_and_one():
    pixels = to_tensor(Image.new("RGB", (2, 3), (0, 255, 51)))
    assert pixels.shape == (3, 3, 2)
    assert to_float(pixels)[:, 0, 0].tolist() == pytest.approx([-1.0, 1.0, -0.6])


@pytest.mark.parametrize("bad", [0, [1, 2, 3], [4, -1], "big", 2.5])
def test_impossible_sizes(bad):
    with pytest.raises(UserError, match="image_size"):
        as_size(bad)
    assert as_size([3, 4]) == (3, 4)
    assert as_size(5) == (5, 5)


def test_impossible_augmentation():
    with pytest.raises(UserError, match="shift=-1"):
        Augment(shift=-1)
    with pytest.raises(UserError, match="pad='black'"):
        Augment(pad="black")
