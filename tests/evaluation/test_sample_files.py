"""Images from folders, .npz files and tar shards; what is refused, and how."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from argen.errors import UserError
from argen.evaluation import sample_files
from argen.evaluation.ahead import ahead
from argen.evaluation.sample_files import open_samples


@pytest.fixture(scope="module")
def pixels():
    return np.random.RandomState(0).randint(0, 256, (11, 6, 8, 3), dtype=np.uint8)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def folder(path, pixels):
    path.mkdir()
    for i, image in enumerate(pixels):
        (path / f"{i:02d}.png").write_bytes(png(image))
    return path


def tar(path, pixels, first=0):
    with tarfile.open(path, "w") as archive:
        for i, image in enumerate(pixels):
            for name, data in (
                (f"{first + i:02d}.png", png(image)),
                (f"{first + i:02d}.cls", b"1"),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("form", ["folder", "npz", "tar"])
def test_every_form_gives_the_same_images_on_any_number_of_ranks(
    tmp_path, pixels, form, ranks, monkeypatch
):
    if form == "folder":
        where = folder(tmp_path / "made", pixels)
    elif form == "npz":
        where = tmp_path / "made.npz"
        np.savez_compressed(where, pixels, labels=np.arange(11))
    else:
        tar(tmp_path / "a-0.tar", pixels[:4])
        tar(tmp_path / "a-1.tar", pixels[4:], first=4)
        where = f"{tmp_path}/a-{{0..1}}.tar"
    samples = open_samples(where)
    assert (samples.count, samples.size) == (11, (6, 8))
    assert (samples.labels is None) == (form != "npz")
    found = torch.zeros(11, 3, 6, 8, dtype=torch.uint8)
    numbers = []
    for rank in range(ranks):
        monkeypatch.setattr(sample_files, "rank_and_world_size", lambda rank=rank: (rank, ranks))
        for index, images in samples.batches(2):
            numbers += index.tolist()
            found[index] = images
    assert sorted(numbers) == list(range(11))
    assert torch.equal(found, torch.from_numpy(pixels).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"arr_0": np.zeros((3, 4, 4, 3), np.float32)}, r"float32 \(3, 4, 4, 3\).*must be uint8"),
        ({"arr_0": np.zeros((3, 3, 4, 4), np.uint8)}, r"uint8 \(3, 3, 4, 4\).*\(N, H, W, 3\)"),
        ({"images": np.zeros((3, 4, 4, 3), np.uint8)}, "must be arr_0"),
        (
            {"arr_0": np.zeros((3, 4, 4, 3), np.uint8), "labels": np.zeros(2)},
            "3 images, but 2 labels",
        ),
        ({"arr_0": np.zeros((1, 4, 4, 3), np.uint8)}, "at least 2"),
    ],
)
def test_npz_of_another_form_is_refused(tmp_path, arrays, told):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=told):
        open_samples(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["x.npz", "x.tar", "x"])
def test_damaged_or_missing_files_are_named(tmp_path, name):
    with pytest.raises(UserError, match="There is no"):
        open_samples(tmp_path / name)
    if name != "x":
        (tmp_path / name).write_bytes(b"something else" * 100)
        with pytest.raises(UserError, match=rf"{name} is not a readable"):
            open_samples(tmp_path / name)


def test_truncated_npz_is_noticed(tmp_path, pixels):
    np.savez(tmp_path / "x.npz", pixels)
    data = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="not a readable"):
        open_samples(tmp_path / "x.npz")


def test_odd_members_of_a_shard_are_named(tmp_path, pixels):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        grey = png(pixels[0, :, :, 0])
        for name, data in (("0.png", png(pixels[0])), ("1.png", grey)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    samples = open_samples(tmp_path / "x.tar")
    with pytest.raises(UserError, match=r"x\.tar:1\.png has mode L"):
        list(samples.batches())


def test_items_made_ahead_keep_their_order_and_errors():
    assert list(ahead(range(20))) == list(range(20))

    def failing():
        yield 1
        raise UserError("no more")

    items = ahead(failing())
    assert next(items) == 1
    with pytest.raises(UserError, match="no more"):
        next(items)
    # Leaving early ends the thread that makes them.
    endless = ahead(iter(int, 1))
    assert next(endless) == 0
    endless.close()
