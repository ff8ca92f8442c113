"""The commands, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import TINY, call, command

import argen
from argen import cli
from argen.pipeline.keys import image_keys
from argen.runtime.files import read_json


def test_training_leaves_everything(workplace: Path) -> None:
    run = workplace / "outputs" / "digits"
    for name in ("tokenizer", "codes", "generator", "model"):
        assert (run / name).is_dir()
    metrics = read_json(run / "metrics.json")
    for key in ("psnr_heldout_db", "codes_used", "bits_per_code_heldout", "wall_seconds"):
        assert metrics[key] > 0
    assert torch.__version__.startswith(metrics["versions"]["torch"])
    assert Image.open(run / "samples.png").width > 100
    assert Image.open(run / "reconstructions.png").width > 100
    assert list((run / "generator" / "grids").glob("step-*.png"))


def test_a_finished_run_is_skipped(workplace: Path) -> None:
    model = workplace / "outputs" / "digits" / "model" / "generator.safetensors"
    before = model.stat().st_mtime_ns
    again = command("train", "name=digits", *TINY, "fit.steps=40", cwd=workplace)
    assert again.returncode == 0, again.stderr
    assert "tokenizer: finished" in again.stdout
    assert "generator: finished" in again.stdout
    assert model.stat().st_mtime_ns == before


def test_other_settings_are_not_mixed_in(workplace: Path) -> None:
    other = command("train", "name=digits", *TINY, "fit.steps=41", cwd=workplace)
    assert other.returncode == 2
    assert "fit.steps: 40, now 41" in other.stderr


def test_sampling_is_the_same_at_any_batch_size(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    images = []
    for size in (1, 4):
        words = ["sample", "model=outputs/digits/model", "classes=[three,7]", "n=3", "cfg=2.0"]
        status, out, err = call(
            monkeypatch, capsys, *words, f"batch_size={size}", f"out=b{size}", "format=npz"
        )
        assert status == 0, err
        assert "decoder exact" in out
        images.append(np.load(workplace / f"b{size}" / "samples.npz"))
    assert images[0]["arr_0"].shape == (6, 16, 16, 3)
    assert images[0]["arr_0"].dtype == np.uint8
    assert (images[0]["arr_0"] == images[1]["arr_0"]).all()
    assert images[0]["labels"].tolist() == [3, 3, 3, 7, 7, 7]


def test_png_files_and_grid(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    status, _, err = call(
        monkeypatch, capsys, "sample", "model=outputs/digits/model", "classes=two", "n=2", "out=png"
    )
    assert status == 0, err
    files = sorted(p.name for p in (workplace / "png").iterdir())
    second = image_keys(0, 2)[1]
    assert files == ["00000-two-seed0.png", f"00001-two-seed{second}.png", "grid.png"]


def test_a_image_is_completed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    words = ["sample", "model=outputs/digits/model", "classes=[three]", "n=3"]
    assert call(monkeypatch, capsys, *words, "out=first")[0] == 0
    source = sorted(Path("first").glob("0*.png"))[0]
    words += [f"image={source}", "keep=top", "paste=true"]
    status, _, err = call(monkeypatch, capsys, *words, "out=completed", "preview=true")
    assert status == 0, err
    given = np.asarray(Image.open(source))
    made = [np.asarray(Image.open(p)) for p in sorted(Path("completed").glob("0*.png"))]
    half = len(given) // 2
    assert all((image[:half] == given[:half]).all() for image in made)
    assert any((image[half:] != given[half:]).any() for image in made)
    rows = [Image.open(f"{d}/grid.png").height for d in ("first", "completed")]
    assert rows[1] > rows[0]  # the image that was given stands above
    assert Path("completed/preview.gif").is_file()


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_other_precisions_draw(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    precision: str,
) -> None:
    monkeypatch.chdir(workplace)
    words = ["sample", "model=outputs/digits/model", "n=1", f"precision={precision}", "device=cpu"]
    status, said, err = call(monkeypatch, capsys, *words, f"out={precision}")
    assert status == 0, err
    assert "10 images" in said
    pipe = argen.load("outputs/digits/model").to_precision("int8")
    with pytest.raises(argen.errors.UserError, match="cannot be saved"):
        pipe.save("saved")


def test_python_api(workplace: Path) -> None:
    pipe = argen.load(workplace / "outputs" / "digits" / "model")
    samples = pipe(["three"], n=2, seed=5)
    assert samples.images.shape == (2, 3, 16, 16)
    assert samples.seeds == image_keys(5, 2)
    codes = pipe.encode(samples.images)
    assert codes.shape == (2, 64)
    assert pipe.decode(codes).shape == (2, 3, 16, 16)
    alone = pipe(["three"], n=1, seed=samples.seeds[1])
    assert torch.equal(alone.codes[0], samples.codes[1])
    # Convolutions of another batch size may round differently in the last bits.
    torch.testing.assert_close(alone.images[0], samples.images[1], atol=1e-4, rtol=0)


def test_tokenize_and_train_the_second_stage_on_its_own(workplace: Path) -> None:
    made = command(
        "tokenize",
        "model=outputs/digits/tokenizer/model",
        "data=digits",
        "out=codes",
        cwd=workplace,
    )
    assert made.returncode == 0, made.stderr
    manifest = json.loads((workplace / "codes" / "train" / "manifest.json").read_text())
    assert manifest["classes"][3] == "three"
    trained = command(
        "train",
        "stage=generator",
        "name=second",
        "model=outputs/digits/tokenizer/model",
        *TINY,
        "fit.steps=4",
        cwd=workplace,
    )
    assert trained.returncode == 0, trained.stderr
    assert (workplace / "outputs" / "second" / "model" / "generator.safetensors").is_file()


def test_evaluate_scores_a_model(workplace: Path) -> None:
    scored = command(
        "evaluate",
        "model=outputs/digits/model",
        "protocol=fd_lite",
        "quick=true",
        "n=40",
        "out=scores.json",
        cwd=workplace,
    )
    assert scored.returncode == 0, scored.stdout + scored.stderr
    result = json.loads((workplace / "scores.json").read_text())
    assert result["fd_lite"] > 0
    assert result["samples"] == 40
    assert not result["comparable"]


def test_help_can_be_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = call(monkeypatch, capsys)
    assert status == 0
    for name in cli.COMMANDS:
        assert name in out
    for name in cli.COMMANDS:
        status, out, err = call(monkeypatch, capsys, name, "--help")
        assert status == 0, err
        assert f"python -m argen.{name}" in out
        assert len(out.splitlines()) <= 50
        assert "tiny/" not in out  # presets of tests are not what anybody looks for


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["paint"], "There is no command 'paint'"),
        (["train", "data=folder"], "data.path must be given"),
        (["train", "data=folder", "data.path=/nowhere/at/all"], "does not exist"),
        (["train", "data=emojii"], "Did you mean 'emoji'"),
        (["train", "optm.lr=1"], "Did you mean 'optim.lr'"),
        (["train", "fit.stps=1"], "Did you mean 'fit.steps'"),
        (["train", "stage=third"], "use stage=all, tokenizer, generator or drafter"),
        (["train", "stage=generator", "name=nothing"], "needs a trained tokenizer"),
        (["train", *TINY, "data.image_size=9"], "not divisible by the tokenizer's factor"),
        (["train", *TINY, "~objective.weights.codebook", "name=unweighted"], "without a weight"),
        (["train", *TINY, "fit.steps=0"], "fit.steps=0 must be at least 1"),
        (["train", "cluster=slurm", "cluster.sbatch.qos=x"], "with a plus: +cluster.sbatch.qos"),
        (["sample"], "model must be given"),
        (["sample", "model=nowhere"], "is not an argen model directory"),
        (["sample", "model=outputs/digits"], "Did you mean outputs/digits/model?"),
        (["sample", "model=outputs/digits/model", "classes=thre"], "Did you mean 'three'"),
        (["sample", "model=outputs/digits/model", "classes=99"], "outside 0 to 9"),
        (["sample", "model=outputs/digits/model", "top_k=65"], "larger than the vocabulary"),
        (["sample", "model=outputs/digits/model", "temperature=-1"], "negative"),
        (["sample", "model=outputs/digits/model", "n=0"], "at least one image"),
        (["sample", "model=outputs/digits/model", "format=gif"], "use png or npz"),
        (["sample", "model=outputs/digits/model", "preview=mp4"], "use true (a GIF), gif, webp"),
        (["sample", "model=outputs/digits/model", "preview=true", "batch_size=4"], "raise batch"),
        (["sample", "model=outputs/digits/tokenizer/model"], "is a tokenizer alone"),
        (["evaluate"], "Give model=DIR"),
        (["evaluate", "model=outputs/digits/model", "n=40"], "quick=true"),
        (["evaluate", "model=outputs/digits/model", "protocol=fdlite"], "fd_lite"),
        (["convert", "source=lamagen", "out=x"], "Did you mean 'llamagen'"),
        (["convert", "source=llamagen", "ckpt=none.pt", "out=x"], "does not exist"),
        (["sample", "model=outputs/digits/model", "keep=top"], "add image=FILE"),
        (["sample", "model=outputs/digits/model", "image=none.png", "keep=top"], "not a readable"),
        (["sample", "model=outputs/digits/model", "image=none.png"], "Say what of the image"),
        (["sample", "model=outputs/digits/model", "batch_size=0"], "batch_size=0 must be at"),
        (["sample", "model=outputs/digits/model", "precision=half"], "Unknown precision=half"),
        (["evaluate", "model=outputs/digits/model", "batch_size=0"], "batch_size=0 must be at"),
        (["tokenize", "model=outputs/digits/model", "out=x", "batch_size=0"], "batch_size=0 must"),
        (["tokenize", "model=outputs/digits/model", "out=x", "views=0"], "views=0 must be at"),
        (["tokenize", "model=outputs/digits/model", "out=x", "views=nine"], "flip or ten_crop"),
        (
            ["tokenize", "model=outputs/digits/model", "out=x", "views=ten_crop", "crop=1"],
            "must make an image larger",
        ),
        (["tokenize", "model=nowhere", "out=x"], "is not an argen model directory"),
    ],
)
def test_bad_input(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(workplace)
    status, _, err = call(monkeypatch, capsys, *words)
    assert status == 2, err
    assert told in err
    assert err.startswith("error: ")
    assert "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_cuda(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    words = ["sample", "model=outputs/digits/model", "device=cuda"]
    status, _, err = call(monkeypatch, capsys, *words)
    assert status == 2
    assert "torch sees none here" in err


def test_truncated_weights(
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from shutil import copytree

    copy = tmp_path / "model"
    copytree(workplace / "outputs" / "digits" / "model", copy)
    weights = copy / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    monkeypatch.chdir(workplace)
    status, _, err = call(monkeypatch, capsys, "sample", f"model={copy}")
    assert status == 2
    assert "damaged or cut short" in err


def test_model_of_another_spec(
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from shutil import copytree

    copy = tmp_path / "model"
    copytree(workplace / "outputs" / "digits" / "model", copy)
    config = json.loads((copy / "config.json").read_text())
    config["tokenizer"]["image_size"] = 32
    config["spec"]["segments"][0]["shape"] = [16, 16]
    (copy / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(workplace)
    status, _, err = call(monkeypatch, capsys, "sample", f"model={copy}")
    assert status == 2
    assert "codes of another tokenizer" in err


def test_foreign_code_needs_trust(workplace: Path, tmp_path: Path) -> None:
    from shutil import copytree

    copy = tmp_path / "model"
    copytree(workplace / "outputs" / "digits" / "model", copy)
    config = json.loads((copy / "config.json").read_text())
    config["generator"]["_target_"] = "os.system"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(argen.errors.UserError, match="trust=true"):  # type: ignore[attr-defined]
        argen.load(copy)


def test_output_directory_that_cannot_be_written(
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.chdir(workplace)
    status, _, err = call(
        monkeypatch,
        capsys,
        "sample",
        "model=outputs/digits/model",
        f"out={tmp_path / 'file' / 'x'}",
    )
    assert status == 2
    assert "not writable" in err
