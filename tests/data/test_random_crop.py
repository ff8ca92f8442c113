"""Random crops: the arithmetic against one written out by hand, their spread, and resume."""

from __future__ import annotations

import io
import random
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from argen.build import build
from argen.data.draws import Draw, DrawSampler, hash_seed
from argen.data.random_crop import RandomCrop, random_crop
from argen.data.transforms import center_crop
from argen.errors import UserError
from argen.runtime.presets import preset

FILTERS = {"bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS, "bilinear": Image.BILINEAR}


def noise_image(width, height, seed=0):
    rows = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(rows)


def by_hand(image, side, low, high, seed, resample):
    """Return a square crop, step by step as LlamaGen's and VAR's loaders describe it."""
    rng = random.Random(hash_seed("crop", seed))
    shorter = low + int(rng.random() * (high - low + 1))
    if resample == "adm":
        while min(image.size) >= 2 * shorter:
            image = image.resize(tuple(x // 2 for x in image.size), Image.BOX)
    ratio = shorter / min(image.size)
    scaled = tuple(round(x * ratio) for x in image.size)
    pixels = np.asarray(image.resize(scaled, FILTERS.get(resample, Image.BICUBIC)))
    top = int(rng.random() * (pixels.shape[0] - side + 1))
    left = int(rng.random() * (pixels.shape[1] - side + 1))
    return pixels[top : top + side, left : left + side]


@pytest.mark.parametrize("resample", ["adm", "bicubic", "lanczos", "bilinear"])
@pytest.mark.parametrize("source", [(90, 64), (64, 131), (33, 40), (300, 200), (20, 11)])
def test_crops_are_those_written_out_by_hand(source, resample):
    image = noise_image(*source)
    for seed in range(5):
        found = RandomCrop((1.0, 1.25), resample)(image, (32, 32), seed)
        expected = by_hand(image, 32, 32, 40, seed, resample)
        assert expected.shape == (32, 32, 3)
        assert (np.asarray(found) == expected).all()


def test_every_length_and_place_comes_up():
    image = noise_image(40, 40)
    crop, sizes, places = RandomCrop((1.0, 1.25)), set(), set()
    for seed in range(600):
        rng = random.Random(hash_seed("crop", seed))
        shorter = 16 + int(rng.random() * 5)
        sizes.add(shorter)
        places.add(
            (shorter, int(rng.random() * (shorter - 15)), int(rng.random() * (shorter - 15)))
        )
        assert crop(image, (16, 16), seed).size == (16, 16)
    assert sizes == {16, 17, 18, 19, 20}
    assert len(places) == sum((n + 1) ** 2 for n in range(5))
    shown = {np.asarray(crop(image, (16, 16), seed)).tobytes() for seed in range(600)}
    assert len(shown) == len(places)


def test_other_proportions_are_covered():
    for source in ((50, 40), (20, 90), (300, 31)):
        assert RandomCrop((1.0, 1.5))(noise_image(*source), (12, 24), 3).size == (24, 12)


def test_without_room_the_centre_is_left():
    image = noise_image(48, 48)
    found = RandomCrop()(image, (16, 16), 9)
    assert (np.asarray(found) == np.asarray(center_crop(image, (16, 16)))).all()


@pytest.mark.parametrize("bad", [(0.5, 1.0), (1.5, 1.0), (1.0,), ("a", "b")])
def test_impossible_ranges(bad):
    with pytest.raises(UserError, match="resize"):
        RandomCrop(bad)


def test_settings_without_a_random_crop_are_refused():
    assert random_crop("center", [1.0, 1.0], "adm") is None
    for given in (("center", [1.0, 1.25], "adm"), ("center", [1.0, 1.0], "lanczos")):
        with pytest.raises(UserError, match=r"data\.crop=random"):
            random_crop(*given)
    for given in (("middle", [1, 1], "adm"), ("random", [1, 1], "nearest")):
        with pytest.raises(UserError, match="crop is center or random"):
            random_crop(*given)


@pytest.fixture
def image_folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            noise_image(50 + i, 40, seed=i).save(tmp_path / name / f"{i}.png")
    return tmp_path


def source_of(path, **options):
    settings = {"image_size": 16, "crop": "random", "resize": [1.0, 1.25], "flip": False}
    return build({**preset("data", "folder"), **settings, "path": str(path), **options}, trust=True)


def test_a_folder_draws_crops_named_by_the_seed(image_folder):
    source = source_of(image_folder)
    with Image.open(image_folder / source.train.names[0]) as file:
        expected = by_hand(file.convert("RGB"), 16, 16, 20, 7, "adm")
    shown = source.train[Draw(0, 7)]["image"]
    assert torch.equal(
        ((shown + 1) * 127.5).round().byte(), torch.tensor(expected).permute(2, 0, 1)
    )
    assert torch.equal(shown, source.train[Draw(0, 7)]["image"])
    assert not torch.equal(shown, source.train[Draw(0, 8)]["image"])
    plain = source.train[0]["image"]
    with Image.open(image_folder / source.train.names[0]) as file:
        middle = np.asarray(center_crop(file.convert("RGB"), (16, 16)))
    assert torch.equal(((plain + 1) * 127.5).round().byte(), torch.tensor(middle).permute(2, 0, 1))
    assert "random crop of 1 to 1.25" in source.manifest()["augment"]
    assert type(source.val).__name__ == "MemoryImages"  # held-out images stay centred and kept
    with pytest.raises(UserError, match="no room for crop=random"):
        source_of(image_folder, cache=True)


def test_a_stream_of_crops_goes_on_where_it_stopped(image_folder):
    data = source_of(image_folder).train

    def drawn(sampler):
        return [data[draw]["image"] for draw in sampler]

    whole = drawn(DrawSampler(len(data), seed=3, num_draws=10))
    first = DrawSampler(len(data), seed=3, num_draws=10)
    iterator = iter(first)
    for _ in range(4):
        next(iterator)
    rest = DrawSampler(len(data), seed=3, num_draws=10)
    rest.load_state_dict(first.state_dict())
    for found, expected in zip(drawn(rest), whole[4:], strict=True):
        assert torch.equal(found, expected)


def test_tar_shards_draw_crops(tmp_path):
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for i in range(3):
                buffer = io.BytesIO()
                noise_image(40, 50, seed=10 * number + i).save(buffer, "PNG")
                for name, data in ((f"{i}.png", buffer.getvalue()), (f"{i}.cls", b"0")):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    settings = {"image_size": 16, "crop": "random", "resize": [1.0, 1.25], "flip": False}
    settings |= {"urls": [str(tmp_path / "0.tar")], "val_urls": [str(tmp_path / "1.tar")]}
    source = build(
        {**preset("data", "webdataset"), **settings, "num_classes": 1, "buffer": 1}, trust=True
    )
    whole = np.asarray(noise_image(40, 50, seed=0))
    expected = by_hand(Image.fromarray(whole), 16, 16, 20, 7, "adm")
    shown = source.train[Draw(0, 7)]["image"]
    assert torch.equal(
        ((shown + 1) * 127.5).round().byte(), torch.tensor(expected).permute(2, 0, 1)
    )
    stream = iter(source.stream)
    first = [next(stream)["image"] for _ in range(6)]
    again = iter(source.stream)
    assert all(torch.equal(next(again)["image"], one) for one in first)
    assert not torch.equal(first[0], first[3])  # the same image, an epoch later
    bare = {source.train[i]["image"].numpy().tobytes() for i in range(3)}
    assert not bare & {one.numpy().tobytes() for one in first}


def test_imagenet_needs_its_folder(monkeypatch, capsys):
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "commands"))
    from runs import call

    status, _, err = call(monkeypatch, capsys, "train", "data=imagenet")
    assert status == 2
    assert "data.path must be given: add data.path=" in err
