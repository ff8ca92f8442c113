"""The five scripts of `examples/` run as their docstrings say, on one tiny model."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
STEPS = 40


def run(script: str, *words: object) -> str:
    """Run an example as a program, in this process; returns what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [script, *map(str, words)])
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)  # for commands that it starts
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return printed.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 20 drawn images each."""
    folder = tmp_path_factory.mktemp("photos")
    for name, colour in (("discs", "red"), ("squares", "blue")):
        (folder / name).mkdir()
        for i in range(20):
            image = Image.new("RGB", (20, 18), "white")
            draw = ImageDraw.Draw(image)
            shape = draw.ellipse if name == "discs" else draw.rectangle
            shape((2 + i % 4, 2 + i // 5, 12 + i % 4, 12 + i // 5), fill=colour)
            image.save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def model(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model directory that `own_images.py` makes."""
    out = tmp_path_factory.mktemp("outputs")
    printed = run("own_images.py", photos, out, "--steps", STEPS)
    assert str(out / "own" / "model") in printed
    assert "psnr_heldout_db" in printed
    return out / "own" / "model"


def test_load_and_sample(model: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    first = run("load_and_sample.py", model, sheet, "--n", 3)
    assert "classes: discs, squares" in first
    assert "6 images, 64 passes each" in first
    drawn = sheet.read_bytes()
    run("load_and_sample.py", model, sheet, "--n", 3)
    assert sheet.read_bytes() == drawn
    run("load_and_sample.py", model, sheet, "--n", 3, "--seed", 9)
    assert sheet.read_bytes() != drawn


def test_inpaint(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "completed.png"
    given = photos / "discs" / "0.png"
    printed = run("inpaint.py", model, given, out, "--label", "discs", "--n", 2)
    assert "32 of 64 codes are given" in printed  # the upper half
    assert Image.open(out).size[0] > 2 * 16


def test_new_generator(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.png"
    printed = run("new_generator.py", model, photos, out, "--steps", 150)
    bits = [float(number) for number in re.findall(r"step \d+: ([\d.]+) bits", printed)]
    assert bits[-1] < 0.6 * bits[0]
    assert Image.open(out).size[0] > 4 * 16


def test_new_generator_keeps_the_contract(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import argen

    monkeypatch.syspath_prepend(str(EXAMPLES))
    from new_generator import ClassConditioner, Recent

    spec = argen.load(model).tokenizer.spec
    torch.manual_seed(0)
    generator = Recent(
        spec=spec, conditioner=ClassConditioner(num_classes=2, dim=16), dim=16, context=4
    ).eval()
    codes = torch.randint(spec.vocab_size, (2, spec.length))
    cond = generator.conditioner(torch.tensor([0, 1]))
    state, steps = generator.start(cond), []
    with torch.no_grad():
        for i in range(spec.length):
            steps.append(generator.predict(state))
            generator.commit(state, codes[:, i : i + 1])
        torch.testing.assert_close(torch.cat(steps, dim=1), generator.score(codes, cond))


def test_score_samples(model: Path, photos: Path, tmp_path: Path) -> None:
    import argen

    samples = argen.load(model)("all", n=12, seed=0)
    for i, image in enumerate(samples.pil()):
        image.save(tmp_path / f"{i:03d}.png")
    out = tmp_path / "scores.json"
    printed = run("score_samples.py", tmp_path, photos, out)
    result = json.loads(out.read_text())
    assert result["protocol"]["name"] == "fd_lite"
    assert result["samples"] == 24
    assert result["fd_lite"] > 0
    assert str(result["fd_lite"]) in printed
    assert "24 samples instead of 1000" in printed


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_docstrings_show_arguments_that_exist(script: Path) -> None:
    tree = ast.parse(script.read_text())
    shown = re.findall(rf"python examples/{script.name} (.*)$", ast.get_docstring(tree) or "", re.M)
    assert shown
    options = set(re.findall(r'"(--\w+)"', script.read_text()))
    for line in shown:
        assert {word for word in shlex.split(line) if word.startswith("--")} <= options


def test_the_page_lists_all_examples() -> None:
    page = (ROOT / "docs" / "examples.md").read_text()
    assert set(re.findall(r"examples/(\w+\.py)\)", page)) == {p.name for p in EXAMPLES.glob("*.py")}
