"""argen reconstruct: images to codes and back, by command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import call

from argen.pipeline import load

MODEL = "model=outputs/digits/model"


@pytest.fixture
def random_images(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five images of two sizes below one folder."""
    monkeypatch.chdir(workplace)
    folder = workplace / "images"
    draws = np.random.default_rng(0)
    for number, side in enumerate((16, 16, 40, 16, 24)):
        (folder / "a").mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 256, (side, side + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "a" / f"{number}.png")
    return folder


def test_codes_that_were_kept_decode_to_the_same_images(
    random_images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reconstruct", MODEL]
    status, said, err = call(
        monkeypatch, capsys, *words, f"images={random_images}", "keep=kept/c.npz", "out=made",
        "batch_size=2",
    )  # fmt: skip
    assert status == 0, err
    assert "5 images in made, mean PSNR" in said
    assert Image.open("made/grid.png").width > 16
    status, _, err = call(monkeypatch, capsys, *words, "codes=kept/c.npz", "out=decoded")
    assert status == 0, err
    for number in range(5):
        a, b = (np.asarray(Image.open(f"{d}/a/{number}.png")) for d in ("made", "decoded"))
        assert a.shape == (16, 16, 3)
        assert (a == b).all()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Give images=FOLDER"),
        (["images=images", "codes=x.npz"], "Give images=FOLDER"),
        (["images=nowhere"], "There is no folder nowhere"),
        (["images=broken.png"], "broken.png is not a readable image"),
        (["codes=other.npz"], "not codes that argen reconstruct kept"),
        (["codes=foreign.npz"], "this tokenizer"),
        (["codes=beyond.npz"], "vocabulary"),
        (["codes=outside.npz"], "outside the output directory"),
        (["codes=short.npz"], "names 1 images, but holds codes of 2"),
        (["images=twins"], "would both be written to"),
        (["images=images", "batch_size=0"], "must be at least 1"),
        (["images=images", "precision=int3"], "use float32 or bfloat16"),
    ],
)
def test_bad_input_is_refused(
    random_images: Path,
    words: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("broken.png").write_bytes(b"\x89PNG nothing more")
    np.savez("other.npz", x=np.zeros(3))
    spec = load("outputs/digits/model").tokenizer.spec.to_dict()
    names = np.array(["a.png"])
    shape = (1, sum(s["shape"][0] * s["shape"][1] for s in spec["segments"]))
    foreign = json.loads(json.dumps(spec))
    foreign["segments"][0]["vocab_sizes"] = [7]
    np.savez(
        "foreign.npz", codes=np.zeros(shape, int), names=names, spec=np.array(json.dumps(foreign))
    )
    np.savez(
        "beyond.npz", codes=np.full(shape, 10**6), names=names, spec=np.array(json.dumps(spec))
    )
    good = {"codes": np.zeros(shape, int), "names": names, "spec": np.array(json.dumps(spec))}
    np.savez("outside.npz", **{**good, "names": np.array(["../escaped.png"])})
    np.savez("short.npz", **{**good, "codes": np.zeros((2, shape[1]), int)})
    Path("twins").mkdir(exist_ok=True)
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (16, 16)).save(Path("twins") / name)
    status, _, err = call(monkeypatch, capsys, "reconstruct", MODEL, *words)
    assert status == 2
    assert not Path("escaped.png").exists()
    assert told in err
    assert len(err.strip().splitlines()) == 1
