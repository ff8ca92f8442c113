import os
import pickle

import pytest
import torch
from PIL import Image
from torchdata.stateful_dataloader import StatefulDataLoader

from argen.data.draws import RequestSampler, SampleRequest
from argen.data.emoji import emoji
from argen.data.folder import folder
from argen.data.images import FileImages, MemoryImages
from argen.errors import UserError


@pytest.fixture(scope="module")
def images():
    """Forty real images of two classes, as (class, PIL image)."""
    source = emoji(24, categories=["animals", "food"], shift=0)
    found = []
    for label in (0, 1):
        rows = (source.train.labels == label).nonzero()[:20, 0].tolist()
        for row in rows:
            pixels = source.train.pixels(row).permute(1, 2, 0).numpy()
            found.append((source.classes[label], Image.fromarray(pixels)))
    return found


@pytest.fixture
def root(tmp_path, images):
    """Class folders with nested images of every extension, upper case too, and other files."""
    kinds = ["a.png", "b.JPG", "c.jpeg", "deep/d.webp", "deep/er/e.bmp"]
    for i, (name, image) in enumerate(images):
        path = tmp_path / name / kinds[i % 5].replace(".", f"{i:02d}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (tmp_path / "animals" / "notes.txt").write_text("not an image")
    (tmp_path / "animals" / "._a00.png").write_bytes(b"resource fork")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "x.png").write_bytes(b"")
    return tmp_path


def spoil(path):
    """Cut a file in half: its header still looks like an image."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("cache", [True, False])
def test_classes_from_folders(root, cache):
    source = folder(root, image_size=16, holdout=0.1, cache=cache)
    assert source.classes == ("animals", "food")
    assert source.counts() == {
        "train": {"animals": 18, "food": 18},
        "val": {"animals": 2, "food": 2},
    }
    assert isinstance(source.train, MemoryImages if cache else FileImages)
    names = source.train.names + source.val.names
    assert len(set(names)) == 40
    for side in (source.train, source.val):
        for i, name in enumerate(side.names):
            assert source.classes[int(side.labels[i])] == name.split(os.sep)[0]
    item = source.train[SampleRequest(0, 5)]
    assert item["image"].shape == (3, 16, 16)
    assert item["image"].abs().max() <= 1


def test_memory_and_files_give_the_same_images(root):
    quick, lazy = (
        folder(root, image_size=[16, 20], cache=cache, shift=2) for cache in (True, False)
    )
    for i in range(len(quick.train)):
        assert torch.equal(
            quick.train[SampleRequest(i, i)]["image"], lazy.train[SampleRequest(i, i)]["image"]
        )
    assert folder(root, image_size=16).train.names == quick.train.names


def test_small_sets_are_cached_and_large_ones_not(root, monkeypatch):
    assert isinstance(folder(root, image_size=16).train, MemoryImages)
    monkeypatch.setattr("argen.data.folder.CACHE_PIXEL_BYTES", 40 * 3 * 16 * 16 - 1)
    assert isinstance(folder(root, image_size=16).train, FileImages)


def test_split_is_named_by_the_seed(root):
    first, again, other = (folder(root, image_size=8, seed=seed) for seed in (0, 0, 1))
    assert first.val.names == again.val.names != other.val.names
    assert first.manifest() == again.manifest()
    assert first.manifest()["fingerprint"] != other.manifest()["fingerprint"]


def test_train_and_val_folders_are_the_split(tmp_path, images):
    for i, (name, image) in enumerate(images):
        path = tmp_path / ("val" if i % 4 == 0 else "train") / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    source = folder(tmp_path, image_size=8)
    assert source.classes == ("animals", "food")
    assert (len(source.train), len(source.val)) == (30, 10)
    assert source.counts()["val"] == {"animals": 5, "food": 5}
    (tmp_path / "val" / "cars").mkdir()
    images[0][1].save(tmp_path / "val" / "cars" / "1.png")
    with pytest.raises(UserError, match="lacks: cars"):
        folder(tmp_path, image_size=8)


def test_damaged_images_are_named_and_left_out(root, caplog):
    damaged = [root / "food" / "a20.png", root / "animals" / "b01.JPG"]
    for path in damaged:
        spoil(path)
    source = folder(root, image_size=16, max_bad_fraction=0.05)
    assert len(source.train) + len(source.val) == 38
    for path in damaged:
        assert str(path.resolve()) in caplog.text
    assert "2 of 40 images were unreadable" in caplog.text
    assert len(source.train.images) == len(source.train.labels) == len(source.train.names)


def test_too_many_damaged_images_stop_the_run(root):
    for i in (0, 5, 10, 15):
        spoil(root / "animals" / f"a{i:02d}.png")
    three = r"(.*a\d\d\.png, ){3}\.\.\."
    with pytest.raises(UserError, match="4 of 40 images cannot be read.*" + three):
        folder(root, image_size=16, max_bad_fraction=0.08)
    assert len(folder(root, image_size=16, max_bad_fraction=0.1).train) > 0


def test_too_many_found_when_read_stop_the_run(root):
    source = folder(root, image_size=16, max_bad_fraction=0.08, cache=False)
    bad = [0, 3, 6, 9]
    for i in bad:
        spoil(root / source.train.names[i])
    for i in bad[:3]:
        assert int(source.train[i]["index"]) not in bad
    with pytest.raises(UserError, match=r"4 of 38 images cannot be read.*, \.\.\."):
        source.train[bad[3]]


def test_one_damaged_image_is_never_too_many_unless_none_is_allowed(root):
    spoil(root / "food" / "a20.png")
    source = folder(root, image_size=16, max_bad_fraction=0.01)
    assert len(source.train) + len(source.val) == 39
    with pytest.raises(UserError, match="1 of 40 images cannot be read"):
        folder(root, image_size=16, max_bad_fraction=0)


def test_image_found_damaged_when_read_is_replaced(root, caplog):
    source = folder(root, image_size=16, cache=False, max_bad_fraction=0.1)
    victim = next(i for i, name in enumerate(source.train.names) if name.endswith(".png"))
    spoil(root / source.train.names[victim])
    for _ in range(2):
        item = source.train[SampleRequest(victim, 3)]
        assert int(item["index"]) != victim
        assert int(item["label"]) == int(source.train.labels[victim])
        stand_in = source.train[SampleRequest(int(item["index"]), 3)]
        assert torch.equal(item["image"], stand_in["image"])
    assert source.train.bad_count == 1
    assert caplog.text.count("Skipped an unreadable image") == 1


def test_damage_is_counted_across_workers(root):
    source = folder(root, image_size=16, cache=False, max_bad_fraction=0.1)
    spoil(root / source.train.names[0])
    loader = StatefulDataLoader(
        source.train,
        batch_size=6,
        num_workers=2,
        sampler=RequestSampler(len(source.train), num_draws=72),
    )
    seen = torch.cat([batch["index"] for batch in loader])
    assert len(seen) == 72
    assert 0 not in seen
    assert source.train.bad_count == 1


def test_file_data_set_can_be_pickled(root):
    source = folder(root, image_size=16, cache=False)
    copy = pickle.loads(pickle.dumps(source.val))
    assert torch.equal(copy[0]["image"], source.val[0]["image"])


def test_class_without_readable_image(tmp_path, images):
    for i, (name, image) in enumerate(images):
        (tmp_path / name).mkdir(exist_ok=True)
        image.save(tmp_path / name / f"{i}.png")
    source = folder(tmp_path, image_size=8, cache=False, max_bad_fraction=0.9)
    for path in (tmp_path / "food").iterdir():
        spoil(path)
    row = int((source.train.labels == 1).nonzero()[0])
    with pytest.raises(UserError, match="No image of the class of food"):
        source.train[row]


def test_unconditional(tmp_path, images):
    for i, (_, image) in enumerate(images[:8]):
        image.save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match=r"lie in no class folder.*unconditional=true"):
        folder(tmp_path, image_size=8)
    (tmp_path / "more").mkdir()
    images[9][1].save(tmp_path / "more" / "9.png")
    with pytest.raises(UserError, match="Only one class, 'more'"):
        folder(tmp_path, image_size=8)
    source = folder(tmp_path, image_size=8, unconditional=True)
    assert source.classes == ("all",)
    assert len(source.train) + len(source.val) == 9


def test_links_in_a_circle_are_followed_once(root):
    os.symlink(root / "animals", root / "animals" / "again")
    assert len(folder(root, image_size=8).train.names) == 38


def test_empty_class_folder_is_named(root, caplog):
    (root / "cars").mkdir()
    assert folder(root, image_size=8).classes == ("animals", "food")
    assert str(root / "cars") in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, r"add data.path=FOLDER"),
        (lambda p: " ", r"add data.path=FOLDER"),
        (lambda p: p / "nowhere" / "at" / "all", "does not exist"),
        (lambda p: (p / "file.png", (p / "file.png").touch())[0], "is a file"),
        (lambda p: p, "is empty"),
        (lambda p: (p, (p / "readme.txt").touch())[0], r"no images \(png, jpg"),
        (lambda p: (p, (p / "cat").mkdir(), (p / "dog").mkdir())[0], "no images"),
    ],
)
def test_bad_folders(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        folder(make(tmp_path), image_size=8)


def test_one_class_only(tmp_path, images):
    (tmp_path / "cat").mkdir()
    for i in range(3):
        images[i][1].save(tmp_path / "cat" / f"{i}.png")
    with pytest.raises(UserError, match="Only one class, 'cat'"):
        folder(tmp_path, image_size=8)


def test_one_image_a_class_cannot_be_split(tmp_path, images):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        images[0][1].save(tmp_path / name / "1.png")
    with pytest.raises(UserError, match=r"No class of .* has two images"):
        folder(tmp_path, image_size=8)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"holdout": 0.0},
        {"holdout": 1.0},
        {"max_bad_fraction": 2},
        {"cache": "maybe"},
        {"shift": -1},
    ],
)
def test_impossible_arguments(root, kwargs):
    with pytest.raises(UserError, match=next(iter(kwargs))):
        folder(root, image_size=8, **kwargs)
