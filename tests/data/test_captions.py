"""Captions of a folder's images, in every form; the emoji's own names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from argen.data.emoji import emoji
from argen.data.folder import folder
from argen.data.images import ImageSource
from argen.errors import UserError

NAMES = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(4)]
CAPTIONS = {name: f"a {name[:3]} with\u00e9 number {name[4]}, seen" for name in NAMES}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def write(root: Path, form: str, captions: dict[str, str]) -> str:
    """Write captions in one form; returns the setting that names it."""
    if form == "beside":
        for name, caption in captions.items():
            (root / name).with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
        return form
    text = {
        "json": json.dumps(captions),
        "txt": "\n".join(f"{n}\t{c}" for n, c in captions.items()),
        "csv": "file,caption\n" + "".join(f'{n},"{c}"\n' for n, c in captions.items()),
        "metadata.csv": "file_name,text\r\n"
        + "".join(f'{n},"{c}"\r\n' for n, c in captions.items()),
    }[form]
    name = form if "." in form else f"captions.{form}"
    (root / name).write_bytes(text.encode("utf-8-sig" if form == "metadata.csv" else "utf-8"))
    return name


def captions(source: ImageSource) -> dict[str, str]:
    found = {}
    for side in (source.train, source.val):
        assert side.captions is not None
        found |= dict(zip(side.names, side.captions, strict=True))
    return found


@pytest.mark.parametrize("form", ["json", "txt", "csv", "metadata.csv", "beside"])
@pytest.mark.parametrize("cache", [True, False])
def test_every_form_says_the_same(root: Path, form: str, cache: bool) -> None:
    setting = write(root, form, CAPTIONS)
    source = folder(root, image_size=16, holdout=0.25, cache=cache, captions=setting)
    assert len(source.val) == 2
    assert captions(source) == CAPTIONS


def test_captions_follow_a_split_of_ones_own(root: Path) -> None:
    for side in ("train", "val"):
        for name in NAMES[::3]:
            path = root / side / name
            path.parent.mkdir(parents=True, exist_ok=True)
            (root / name).replace(path) if side == "val" else path.write_bytes(
                (root / name).read_bytes()
            )
    for name in ("cat", "dog"):
        for left in (root / name).iterdir():
            left.unlink()
        (root / name).rmdir()
    told = {f"{side}/{name}": f"{side} {name}" for side in ("train", "val") for name in NAMES[::3]}
    source = folder(root, image_size=16, captions=write(root, "json", told))
    assert source.train.captions == [f"train {name}" for name in NAMES[::3]]
    assert source.val.captions == [f"val {name}" for name in NAMES[::3]]
    source = folder(root, image_size=16, captions=write(root, "beside", told))
    assert source.val.captions == [f"val {name}" for name in NAMES[::3]]


def test_captions_stay_with_their_images_when_one_is_damaged(root: Path) -> None:
    setting = write(root, "json", CAPTIONS)
    (root / "cat" / "2.png").write_bytes(b"torn")
    found = captions(folder(root, image_size=16, holdout=0.25, captions=setting))
    assert found == {name: CAPTIONS[name] for name in NAMES if name != "cat/2.png"}


def test_bare_names_will_do_where_they_are_unique(root: Path) -> None:
    for name in NAMES[4:]:
        (root / name).rename(root / "dog" / f"d{name[4:]}")
    bare = {f"{i}.png": f"cat {i}" for i in range(4)} | {f"d{i}.png": f"dog {i}" for i in range(4)}
    found = captions(folder(root, image_size=16, captions=write(root, "json", bare)))
    assert found["cat/3.png"] == "cat 3"
    assert found["dog/d0.png"] == "dog 0"


def test_what_is_wrong_is_named(root: Path) -> None:
    def refuse(message: str, setting: str) -> None:
        with pytest.raises(UserError, match=message):
            folder(root, image_size=16, captions=setting)

    refuse(r"no file of captions .*nothing\.csv", "nothing.csv")
    refuse(r"captions=words\.xml must be", "words.xml")
    refuse(r"8 of 8 images have no caption: .*a \.txt beside", "beside")
    some = {name: CAPTIONS[name] for name in NAMES[1:]} | {NAMES[1]: "  "}
    refuse(r"2 of 8 images have no caption: .*cat/[01]\.png", write(root, "json", some))
    refuse(r"0\.png, which 2 images are called", write(root, "json", {"0.png": "which?"}))
    (root / "captions.txt").write_text("cat/0.png a cat\n")
    refuse(r"Line 1 of .*captions\.txt has no tab", "captions.txt")
    (root / "captions.csv").write_text("cat/0.png,a cat\n")
    refuse(r"file,caption; found cat/0\.png,a cat", "captions.csv")
    (root / "captions.json").write_text('["a cat"]')
    refuse(r"one object of captions", "captions.json")
    (root / "captions.json").write_text("{")
    refuse(r"is no JSON", "captions.json")
    (root / "captions.txt").write_bytes(b"cat/0.png\t\xff")
    refuse(r"cannot be read as UTF-8", "captions.txt")


def test_emoji_are_captioned_by_their_names() -> None:
    source = emoji(16, categories=["smileys", "flags"])
    found = captions(source)
    assert found["heart"] == "red heart"
    assert found["blue_heart"] == "blue heart"
    assert found["flag-th"] == "thailand flag"
    assert all(caption == caption.lower() and "_" not in caption for caption in found.values())
