"""`stage=drafter` trains a drafter for a trained generator, by command, and images come of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import TINY, call, command
from test_resume import assert_same, start

from argen.generators.drafter.feature_drafter import load_drafter
from argen.generators.drafter.target import code_vectors, require_target
from argen.pipeline import load
from argen.runtime.files import read_json

STEPS = ["trainer.log_every_n_steps=10", "fit.steps=30", "fit.save_every=5", "fit.val_every=15"]
WORDS = ["train", "stage=drafter", "name=digits", *TINY, *STEPS, "optim.lr=3e-3"]


def prepared(workplace: Path, place: Path) -> Path:
    """Copy the trained model and its codes into a run of their own; returns its directory."""
    run = place / "outputs" / "digits"
    for name in ("model", "codes"):
        shutil.copytree(workplace / "outputs" / "digits" / name, run / name)
    return run


@pytest.fixture(scope="module")
def drafted(
    workplace: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A directory with a drafter for `outputs/digits/model`, and what its training said."""
    place = tmp_path_factory.mktemp("drafted")
    prepared(workplace, place)
    done = command(*WORDS, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return place, done


def test_a_drafter_is_left_with_what_it_is_worth(
    drafted: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    place, done = drafted
    run = place / "outputs" / "digits"
    assert "decoder=relaxed decoder.drafter=outputs/digits/drafter/model decoder.k=0" in done.stdout
    result = read_json(run / "drafter" / "metrics.json")
    assert 0 < result["kept_heldout"] < 1
    assert min(result["codes_per_pass_dynamic"], result["codes_per_pass_static"]) > 1
    rows = (run / "drafter" / "logs" / "metrics.csv").read_text()
    for name in ("val/loss", "val/feature", "val/logit", "tokens_per_second"):
        assert name in rows.splitlines()[0]
    saved = read_json(run / "drafter" / "model" / "config.json")
    assert saved["drafter"]["heads"] == 4
    assert saved["drafter"]["kv_heads"] == 2
    assert saved["drafter"]["condition_rope"] == "identity"
    assert saved["provenance"]["weights"] == "ema"
    # The generator is frozen and is stored nowhere; its embedding is the drafter's.
    pipe = load(run / "model")
    assert pipe.generator is not None
    drafter = load_drafter(run / "drafter" / "model")
    vectors = code_vectors(require_target(pipe.generator), len(drafter.embed.weight))
    assert torch.equal(drafter.embed.weight, vectors)
    last = torch.load(run / "drafter" / "checkpoints" / "last.ckpt", weights_only=True)
    for weights in (last["state_dict"], last["current_model_state"]):
        assert {key.split(".")[0] for key in weights} <= {"drafter", "module"}
    trained = [p for p in drafter.parameters() if p.requires_grad]
    assert len(last["optimizer_states"][0]["state"]) == len(trained)
    assert not (run / "metrics.json").exists()  # the scores of the model are another stage's


def test_images_are_the_generators_own_in_fewer_passes(
    drafted: tuple[Path, subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(drafted[0])
    model, images, passes = "model=outputs/digits/model", [], []
    drafter = "decoder.drafter=outputs/digits/drafter/model"
    for name, words in (
        ("plain", []),
        ("tree", ["decoder=relaxed", drafter, "decoder.k=0", "require_exact=true"]),
        ("near", ["decoder=relaxed", drafter, "decoder.k=20", "decoder.tree=static"]),
    ):
        drawn = ["classes=[three]", "n=2", "temperature=0", "format=npz", f"out={name}", *words]
        status, said, err = call(monkeypatch, capsys, "sample", model, *drawn)
        assert status == 0, err
        images.append(np.load(f"{name}/samples.npz")["arr_0"])
        passes.append(int(said.split("(")[1].split(" passes")[0]))
    assert (images[0] == images[1]).all()
    assert passes[0] == 64
    assert max(passes[1:]) < 60


def test_a_killed_stage_ends_the_same(
    drafted: tuple[Path, subprocess.CompletedProcess[str]], workplace: Path, tmp_path: Path
) -> None:
    run = prepared(workplace, tmp_path)
    process = start(WORDS, tmp_path, "drafter")
    process.kill()
    process.wait()
    assert not (run / "drafter" / "finished.json").exists()
    again = command(*WORDS, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "drafter: going on from" in again.stdout
    expected = drafted[0] / "outputs" / "digits" / "drafter"
    assert_same(expected / "model", run / "drafter" / "model")
    whole, resumed = (read_json(d / "metrics.json") for d in (expected, run / "drafter"))
    assert whole["loss_heldout"] == resumed["loss_heldout"]


def test_a_finished_drafter_is_skipped_and_other_settings_are_refused(
    drafted: tuple[Path, subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(drafted[0])
    caplog.set_level("INFO")
    status, said, err = call(monkeypatch, capsys, *WORDS)
    assert status == 0, err
    assert "drafter: finished, see outputs/digits/drafter" in caplog.text
    assert "codes_per_pass_static" in said
    for word, told in (
        ("drafter.layers=2", "drafter.layers: 1, now 2"),
        ("drafter.loss.noise_scale=0.2", "drafter.loss.noise_scale: 0.1, now 0.2"),
        ("+stages.drafter.fit.ema=0", "fit.ema: 0.999, now 0"),
        ("optim=eagle", "optim.clip_value: 0.0, now 0.5"),
    ):
        status, _, err = call(monkeypatch, capsys, *WORDS, word)
        assert status == 2
        assert told in err


def test_another_runs_model_and_given_codes(
    drafted: tuple[Path, subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(drafted[0])
    given = ["model=outputs/digits/model", "codes.path=outputs/digits/codes"]
    words = [*WORDS, "name=other", *given, "optim=eagle", "optim.warmup=1", "fit.steps=2"]
    status, said, err = call(monkeypatch, capsys, *words, "drafter.heads=2", "fit.ema=0")
    assert status == 0, err
    assert "model=outputs/digits/model" in said
    saved = read_json(Path("outputs/other/drafter/model/config.json"))
    assert saved["drafter"]["heads"] == 2
    assert saved["provenance"]["weights"] == "raw"
    assert not Path("outputs/other/codes").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["name=nothing"], "stage=drafter needs a trained generator"),
        (["model=outputs/digits/tokenizer/model"], "is a tokenizer alone"),
        (["model=outputs/other/model"], "was written by tokenizer"),
        (["drafter=eagl"], "Did you mean 'eagle'"),
        (["drafter.heads=3"], "must be divisible by 3 heads"),
        (["drafter.loss.noise=1"], "Did you mean"),
        (["+stages.drafter.lr=1"], "stages.drafter may set"),
        (["text_encoder=minilm"], "leave text_encoder out"),
    ],
)
def test_what_does_not_fit_is_refused(
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    run = prepared(workplace, tmp_path)
    shutil.copytree(
        workplace / "outputs" / "digits" / "tokenizer" / "model", run / "tokenizer/model"
    )
    if "outputs/other" in words[0]:  # the codes are those of another tokenizer
        pipe = load(run / "model")
        with torch.no_grad():
            next(pipe.tokenizer.parameters()).add_(1.0)
        pipe.save(tmp_path / "outputs" / "other" / "model")
        words = [*words, "codes.path=outputs/digits/codes"]
    monkeypatch.chdir(tmp_path)
    status, _, err = call(monkeypatch, capsys, *WORDS, *words)
    assert status == 2, err
    assert told in err
    assert err.startswith("error: ")
    assert not (run / "drafter" / "model").exists()


def test_codes_of_other_classes_are_refused(
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = prepared(workplace, tmp_path)
    for split in ("train", "val"):
        path = run / "codes" / split / "manifest.json"
        path.write_text(path.read_text().replace('"three"', '"thirteen"'))
    monkeypatch.chdir(tmp_path)
    words = [*WORDS, "codes.path=outputs/digits/codes"]
    status, _, err = call(monkeypatch, capsys, *words)
    assert status == 2
    assert "choose the data= that it was trained on" in err


def test_generators_without_drafts_are_refused(
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from argen.build import build
    from argen.runtime.presets import for_codes, preset

    run = prepared(workplace, tmp_path)
    pipe = load(run / "model")
    config = for_codes(preset("generator", "tiny_maskgit"), pipe.tokenizer.spec, num_classes=10)
    pipe.generator = build(config)
    pipe.save(tmp_path / "masked")
    monkeypatch.chdir(tmp_path)
    status, _, err = call(monkeypatch, capsys, *WORDS, "model=masked")
    assert status == 2
    assert "next-token generators with one id a position, not for MaskGIT" in err
