"""A killed run goes on where it was, and ends as if it had never been killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked import Running
from PIL import Image
from runs import TINY, command
from safetensors.torch import load_file

from argen.data.digits import digits
from argen.runtime.files import read_json

WORDS = ["train", "name=digits", *TINY, "fit.steps=40"]


def start(words: list[str], cwd: Path, stage: str) -> Running:
    """Start a run and return it once a stage has written its first checkpoint."""
    return start_until(words, cwd, cwd / "outputs" / "digits" / stage / "checkpoints" / "last.ckpt")


def start_until(words: list[str], cwd: Path, written: Path) -> Running:
    """Start a command and return it once it has written a file."""
    process = Running(f"argen.{words[0]}", words[1:], cwd=cwd)
    deadline = time.monotonic() + 300
    while not written.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert written.is_file(), process.said()
    return process


def assert_same(whole: Path, run: Path) -> None:
    """Both models hold the same weights, to the last bit."""
    files = sorted(path.name for path in whole.glob("*.safetensors"))
    assert files
    for name in files:
        expected, found = load_file(whole / name), load_file(run / name)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert (value == found[key]).all(), f"{name}: {key} differs after a resume"


def test_kill_and_resume_gives_the_same_model(workplace: Path, tmp_path: Path) -> None:
    process, run = start(WORDS, tmp_path, "generator"), tmp_path / "outputs" / "digits"
    # While it lives, nobody else may write there.
    os.kill(process.pid, signal.SIGSTOP)
    second = command(*WORDS, cwd=tmp_path)
    assert second.returncode == 2
    assert f"in use by process {process.pid} on " in second.stderr
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "generator" / "finished.json").exists()

    refused = command(*WORDS, "auto_resume=false", cwd=tmp_path)
    assert refused.returncode == 2
    assert "auto_resume=false starts nothing over it" in refused.stderr

    again = command(*WORDS, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "tokenizer: finished" in again.stdout
    assert "generator: going on from" in again.stdout
    assert_same(workplace / "outputs" / "digits" / "model", run / "model")
    assert read_json(run / "metrics.json")["name"] == "digits"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_asks_to_be_started_again(
    workplace: Path, tmp_path: Path, name: str
) -> None:
    process, run = start(WORDS, tmp_path, "generator"), tmp_path / "outputs" / "digits"
    process.send_signal(getattr(signal, name))
    said = "".join(process.communicate(timeout=300))
    assert process.returncode == 75, said
    assert f"{name}: generator stopped and saved" in said
    assert (run / "run.lock").read_text() == ""
    # The file that was just written is lost: the one before it serves.
    last = run / "generator" / "checkpoints" / "last.ckpt"
    assert last.with_name("previous.ckpt").is_file()
    last.write_bytes(last.read_bytes()[:1000])
    again = command(*WORDS, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "was damaged" in again.stdout
    assert "generator: going on from" in again.stdout
    assert_same(workplace / "outputs" / "digits" / "model", run / "model")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.full), 2])
def test_a_killed_tokenizer_with_its_discriminator_ends_the_same(
    tmp_path: Path, workers: int
) -> None:
    words = [*WORDS, "stage=tokenizer", "objective=tiny", f"fit.workers={workers}"]
    words += ["objective.discriminator_start=3", "objective.adversarial_start=6"]
    places = tmp_path / "whole", tmp_path / "killed"
    for place in places:
        place.mkdir()
    process = start(words, places[1], "tokenizer")
    process.kill()
    process.wait()
    for place in places:
        done = command(*words, cwd=place)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "tokenizer: going on from" in done.stdout
    assert_same(*(place / "outputs" / "digits" / "tokenizer" / "model" for place in places))


def test_killed_tokenising_keeps_the_shards_that_are_whole(workplace: Path, tmp_path: Path) -> None:
    model = workplace / "outputs" / "digits" / "model"
    words = ["tokenize", f"model={model}", "data=digits", "shard_size=20", "device=cpu"]
    whole = command(*words, f"out={tmp_path / 'whole'}", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    codes = tmp_path / "codes"
    process = start_until(
        [*words, f"out={codes}"], tmp_path, codes / "train" / "codes-00002.npy"
    )  # fmt: skip
    process.kill()
    process.wait()
    assert not (codes / "train" / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (codes / "train").glob("codes-*.npy")}
    again = command(*words, f"out={codes}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    for path in (tmp_path / "whole").rglob("*.npy"):
        assert path.read_bytes() == (codes / path.relative_to(tmp_path / "whole")).read_bytes()


def test_a_killed_run_on_shards_trains_the_steps_that_are_left(tmp_path: Path) -> None:
    source = digits(image_size=16)
    for i in range(100):
        folder = tmp_path / "images" / source.classes[int(source.train.labels[i])]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = source.train.pixels(i).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    tool = Path(__file__).parents[2] / "tools" / "make_shards.py"
    made = [sys.executable, str(tool), "images", "shards", "--items", "10"]
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    words = [*WORDS, "data=webdataset", "data.urls=shards/*.tar", "data.num_classes=null"]
    words += ["stage=tokenizer", "fit.workers=2", "trainer.log_every_n_steps=5"]
    words.remove("data=digits")
    process = start(words, tmp_path, "tokenizer")
    process.kill()
    process.wait()
    again = command(*words, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "tokenizer: going on from" in again.stdout
    run = tmp_path / "outputs" / "digits" / "tokenizer"
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 40
    rows = (run / "logs" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("images_seen")
    seen = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    assert seen == sorted(seen)
    assert seen[-1] > 0
