"""Tar shards: written whole, read by number and as a stream, dealt out without overlap."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import logging
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from make_shards import main as make_shards
from PIL import Image
from torch.utils.data import DataLoader

from argen.data.emoji import emoji
from argen.data.folder import folder
from argen.data.tar_members import label_in, split_name
from argen.data.tar_source import webdataset
from argen.data.tar_stream import PLACES, TarStream
from argen.errors import UserError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty real images in two class folders."""
    root = tmp_path_factory.mktemp("images")
    source = emoji(24, categories=["animals", "food"], shift=0)
    for label, name in enumerate(source.classes):
        (root / name).mkdir()
        rows = (source.train.labels == label).nonzero()[:30, 0].tolist()
        for row in rows:
            pixels = source.train.pixels(row).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(root / name / f"{row}.png")
    return root


def write(images: Path, out: Path, *, items: int = 6) -> Path:
    words = [str(images), str(out), "--items", str(items), "--holdout", "0.1"]
    assert make_shards(words) == 0
    return out


def opened(shards: Path, **options: object) -> object:
    return webdataset(
        f"{shards}/train-*.tar", f"{shards}/val-*.tar", **{"image_size": 16, **options}
    )


def sums(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.tar")}


def spoil_image(shard: Path, place: int) -> str:
    """Overwrite the middle of one image in a shard; returns its key."""
    with tarfile.open(shard) as archive:
        entry = [e for e in archive if e.name.endswith(".png")][place]
    with shard.open("r+b") as file:
        file.seek(entry.offset_data)
        file.write(bytes(entry.size))
    return split_name(entry.name)[0]


def test_what_is_written_names_itself(images: Path, tmp_path: Path) -> None:
    shards = write(images, tmp_path / "shards")
    manifest = json.loads((shards / "manifest.json").read_text())
    assert manifest["classes"] == ["animals", "food"]
    assert manifest["items"] == {"train": 54, "val": 6}
    assert manifest["class_counts"]["val"] == {"animals": 3, "food": 3}
    assert {s["file"]: s["sha256"] for s in manifest["shards"]} == sums(shards)
    assert [s["items"] for s in manifest["shards"]] == [6] * 10
    with tarfile.open(shards / "train-00000.tar") as archive:
        files = {split_name(e.name)[1]: archive.extractfile(e).read() for e in list(archive)[:3]}
    about, held = json.loads(files["json"]), files["png"]
    assert (images / about["name"]).read_bytes() == held


def test_shards_that_are_missing_are_written_again(images: Path, tmp_path: Path) -> None:
    shards = write(images, tmp_path / "shards")
    before = sums(shards)
    (shards / "train-00003.tar").unlink()
    (shards / "manifest.json").unlink()
    kept = (shards / "train-00004.tar").stat().st_mtime_ns
    write(images, shards)
    assert sums(shards) == before
    assert (shards / "train-00004.tar").stat().st_mtime_ns == kept


def test_captions_travel_with_the_images(images: Path, tmp_path: Path) -> None:
    assert opened(write(images, tmp_path / "plain")).train.captions is None
    told = {path.relative_to(images).as_posix(): f"a {path.stem}" for path in images.rglob("*.png")}
    (tmp_path / "captions.json").write_text(json.dumps(told))
    words = [str(images), str(tmp_path / "told"), "--items", "6"]
    assert make_shards([*words, "--captions", str(tmp_path / "captions.json")]) == 0
    train = opened(tmp_path / "told").train
    with tarfile.open(train.files[0]) as archive:
        about = [json.load(archive.extractfile(e)) for e in archive if e.name.endswith(".json")]
    assert train.captions[: len(about)] == [told[each["name"]] for each in about]
    assert make_shards(words) == 2


def test_other_settings_are_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write(images, tmp_path / "shards")
    assert make_shards([str(images), str(shards), "--items", "7"]) == 2
    assert "other images or settings" in capsys.readouterr().err
    assert make_shards([str(tmp_path / "none"), str(tmp_path / "x")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert make_shards([str(images), str(tmp_path / "x"), "--items", "0"]) == 2


def test_unreadable_images_are_left_out(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = tmp_path / "some"
    for name in ("animals", "food"):
        (some / name).mkdir(parents=True)
        for path in sorted((images / name).iterdir())[:10]:
            (some / name / path.name).write_bytes(path.read_bytes())
    (some / "food" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n half")
    shards = write(some, tmp_path / "shards")
    assert "left out as unreadable: 1" in capsys.readouterr().out
    manifest = json.loads((shards / "manifest.json").read_text())
    assert [Path(p).name for p in manifest["left_out"]] == ["broken.png"]
    words = [str(some), str(tmp_path / "y"), "--max-bad-fraction", "0"]
    assert make_shards(words) == 2
    assert "broken.png" in capsys.readouterr().err


def test_images_by_number_are_those_of_the_folder(images: Path, tmp_path: Path) -> None:
    source = opened(write(images, tmp_path / "shards"), flip=False)
    plain = folder(images, image_size=16, holdout=0.1, flip=False)
    assert source.classes == plain.classes
    assert source.counts() == plain.counts()
    for ours, theirs in ((source.train, plain.train), (source.val, plain.val)):
        seen = {hashlib.sha256(theirs.pixels(i).numpy()).hexdigest() for i in range(len(theirs))}
        for i in range(len(ours)):
            assert hashlib.sha256(ours.pixels(i).numpy()).hexdigest() in seen
    item = source.train[5]
    assert item["image"].shape == (3, 16, 16)
    again = opened(tmp_path / "shards", flip=False)
    assert again.manifest()["fingerprint"] == source.manifest()["fingerprint"]


def first_epoch(stream: TarStream, rank: int, *, world: int, workers: int, method: str | None):
    """Return the numbers of all images that a rank draws in its first epoch."""
    stream.dealt_to(rank, world)
    loader = DataLoader(stream, batch_size=1, num_workers=workers, multiprocessing_context=method)
    readers = world * max(1, workers)
    shares = [
        sum(len(range(t, 6, k)) for _, t, k in stream.share(0, rank * max(1, workers) + w, readers))
        for w in range(max(1, workers))
    ]
    # Workers take turns, so read whole rounds and keep each worker's first epoch.
    drawn: list[list[int]] = [[] for _ in shares]
    for n, item in enumerate(loader):
        drawn[n % len(shares)].append(int(item["index"]))
        if n + 1 == len(shares) * max(shares):
            break
    return [index for own, count in zip(drawn, shares) for index in own[:count]]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_ranks_and_workers_share_nothing(images: Path, tmp_path: Path, method: str) -> None:
    source = opened(write(images, tmp_path / "shards"), buffer=1)
    ranks = [
        first_epoch(source.stream, rank, world=2, workers=2, method=method) for rank in range(2)
    ]
    assert len(set(ranks[0]) | set(ranks[1])) == 54
    assert not set(ranks[0]) & set(ranks[1])
    assert len(ranks[0]) + len(ranks[1]) == 54
    assert ranks[0] == first_epoch(source.stream, 0, world=2, workers=2, method="fork")


def test_more_readers_than_shards_take_turns(images: Path, tmp_path: Path) -> None:
    source = opened(write(images, tmp_path / "shards"), buffer=1)
    few = TarStream(source.stream.shards[:3], source.classes, (16, 16), buffer=1)
    drawn = [
        i for r in range(5) for i in first_epoch(few, r, world=5, workers=0, method=None)
    ]  # fmt: skip
    assert sorted(drawn) == [shard * PLACES + place for shard in range(3) for place in range(6)]


def take(stream: TarStream, count: int) -> list[int]:
    images: Iterator[dict[str, torch.Tensor]] = iter(stream)
    return [int(next(images)["index"]) for _ in range(count)]


def test_the_order_repeats_and_changes_with_the_step_it_begins_at(
    images: Path, tmp_path: Path
) -> None:
    shards = write(images, tmp_path / "shards")
    orders = [
        take(opened(shards, seed=seed, buffer=20).stream.dealt_to(0, 1, restart=step), 54)
        for seed, step in ((0, 0), (0, 0), (0, 10), (1, 0))
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != orders[3]
    in_order = take(opened(shards, buffer=1).stream.dealt_to(0, 1), 54)
    assert sorted(in_order) == sorted(set(in_order))


def test_streamed_images_and_labels_are_those_read_by_number(images: Path, tmp_path: Path) -> None:
    source = opened(write(images, tmp_path / "shards"), flip=False, buffer=1)
    by_place = {
        (shard, index - source.train.shard_of.index(shard)): index
        for index, shard in enumerate(source.train.shard_of)
    }
    stream = iter(source.stream.dealt_to(0, 1))
    for _ in range(54):
        item = next(stream)
        same = source.train[by_place[divmod(int(item["index"]), PLACES)]]
        assert torch.equal(item["image"], same["image"])
        assert item["label"] == same["label"]


def test_damage_is_counted_named_and_limited(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = write(images, tmp_path / "shards")
    key = spoil_image(shards / "train-00002.tar", 3)
    source = opened(shards, buffer=1)
    with caplog.at_level(logging.WARNING):
        drawn = take(source.stream.dealt_to(0, 1), 53)
    assert len(set(drawn)) == 53
    assert source.stream.bad_count == 1
    assert key in caplog.text
    assert "train-00002.tar" in caplog.text
    cut = shards / "train-00005.tar"
    cut.write_bytes(cut.read_bytes()[:3000])
    with caplog.at_level(logging.WARNING):
        take(opened(shards, buffer=1).stream.dealt_to(0, 1), 48)
    assert "Skipped shard" in caplog.text
    strict = opened(shards, buffer=1, max_bad_fraction=0).stream.dealt_to(0, 1)
    with pytest.raises(UserError, match="max_bad_fraction=0 allows"):
        take(strict, 54)
    loader = DataLoader(strict, batch_size=2, num_workers=1)
    with pytest.raises(UserError, match="max_bad_fraction=0 allows"):
        for _, _ in zip(range(27), loader):
            pass


def test_a_shard_that_is_no_tar_file_is_named(images: Path, tmp_path: Path) -> None:
    shards = write(images, tmp_path / "shards")
    (shards / "train-00001.tar").write_bytes(b"nothing of the kind" * 100)
    source = opened(shards)
    with pytest.raises(UserError, match=r"train-00001\.tar cannot be read"):
        len(source.train)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(images: Path, tmp_path: Path) -> Iterator[str]:
    shards = write(images, tmp_path / "served")
    handler = functools.partial(Quiet, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_shards_from_elsewhere(served: str, tmp_path: Path) -> None:
    urls = served + "/train-{00000..00008}.tar"
    options = {"val_urls": f"{served}/val-00000.tar", "num_classes": 2}
    options |= {"image_size": 16, "buffer": 1}
    source = webdataset(urls, **options)
    assert source.classes == ("0", "1")
    assert len(set(take(source.stream.dealt_to(0, 1), 54))) == 54
    with pytest.raises(UserError, match=r"data\.cache_dir=DIR"):
        len(source.val)
    source = webdataset(urls, cache_dir=str(tmp_path / "cache"), **options)
    assert len(source.val) == 6
    assert len(set(take(source.stream.dealt_to(0, 1), 54))) == 54
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 10
    pipes = [f"pipe:cat {tmp_path}/served/train-0000{i}.tar" for i in range(4)]
    piped = webdataset(pipes, image_size=16, buffer=1, unconditional=True)
    assert len(set(take(piped.stream.dealt_to(0, 1), 18))) == 18


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"urls": None}, "No shards given"),
        ({"urls": "{root}/gone-{00..01}.tar"}, "There is no shard"),
        ({"urls": "{root}/train-*.tar", "classes": None}, "Nothing says what the classes"),
        ({"urls": "{root}/train-00000.tar", "num_classes": 2}, "One shard cannot be split"),
        ({"urls": ["{root}/train-00000.tar"] * 2, "num_classes": 2}, "names a shard twice"),
        ({"urls": "{root}/train-*.tar", "num_classes": 2, "holdout": 1}, "between 0 and 1"),
        ({"urls": "{root}/train-*.tar", "num_classes": 2, "buffer": 0}, "buffer=0"),
    ],
)
def test_bad_input(images: Path, tmp_path: Path, options: dict, told: str) -> None:
    shards = write(images, tmp_path / "shards")
    (shards / "manifest.json").unlink()

    def place(urls: object) -> object:
        if isinstance(urls, list):
            return [place(url) for url in urls]
        return urls.replace("{root}", str(shards)) if isinstance(urls, str) else urls

    with pytest.raises(UserError, match=told):
        webdataset(**{**options, "urls": place(options["urls"])})


def test_classes_as_they_are_written() -> None:
    classes = ["cat", "dog"]
    assert label_in({"cls": b"1\n"}, classes, unconditional=False) == 1
    assert label_in({"cls": b"dog"}, classes, unconditional=False) == 1
    assert label_in({"json": b'{"class": "cat"}'}, classes, unconditional=False) == 0
    assert label_in({"json": b'{"label": 1}'}, classes, unconditional=False) == 1
    assert label_in({}, classes, unconditional=True) == 0
    for parts in ({"cls": b"2"}, {"cls": b"dgo"}, {}, {"json": b"{}"}, {"json": b"{"}):
        with pytest.raises(ValueError, match=r"."):
            label_in(parts, classes, unconditional=False)
    assert split_name("a/b.c/0001.seg.PNG") == ("a/b.c/0001", "seg.png")
