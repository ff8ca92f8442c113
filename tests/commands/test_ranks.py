"""Two processes train as one does: gloo on a CPU, by command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import TINY, command
from safetensors.torch import load_file

# No draws that differ between ranks, and rounding that Adam does not blow up.
SAME = [
    *TINY,
    "fit.steps=4",
    "fit.ema=0",
    "generator.conditioner.drop_rate=0",
    "generator.token_dropout=0",
    "generator.residual_dropout=0",
    "generator.ffn_dropout=0",
    "samples.cfg=1.0",
    "+optim.eps=1e-3",
    "trainer.precision=32-true",
]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]


@pytest.mark.slow
def test_two_ranks_with_a_discriminator_are_killed_and_go_on(tmp_path: Path) -> None:
    words = [
        "train", "name=two", *TINY, *TWO, "stage=tokenizer", "objective=tiny", "fit.steps=30",
        "objective.discriminator_start=3", "objective.adversarial_start=6",
    ]  # fmt: skip
    places = [tmp_path / name for name in ("whole", "stopped")]
    for place in places:
        place.mkdir()
    import signal

    from test_resume import assert_same, start

    process = start([w.replace("name=two", "name=digits") for w in words], places[1], "tokenizer")
    process.send_signal(signal.SIGKILL)
    process.wait()
    for place in places:
        done = command(words[0], "name=digits", *words[2:], cwd=place)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "tokenizer: going on from" in done.stdout
    assert_same(*(place / "outputs" / "digits" / "tokenizer" / "model" for place in places))


def test_two_ranks_write_the_codes_that_one_writes_and_training_reads_them(
    workplace: Path, tmp_path: Path
) -> None:
    words = [
        f"model={workplace}/outputs/digits/model", "data=digits", "views=2", "shard_size=300",
    ]  # fmt: skip
    alone = command("tokenize", *words, "out=one", cwd=tmp_path)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    both = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
            "-m", "argen.tokenize", *words, "out=two",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert both.returncode == 0, both.stdout + both.stderr
    assert both.stdout.count("codes: ") == 1
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) > 8
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    train = [
        "name=given", "stage=generator", f"model={workplace}/outputs/digits/model", *TINY,
        "fit.steps=4", "codes.path=two",
    ]  # fmt: skip
    done = command("train", *train, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "outputs" / "given" / "codes").exists()
    # Codes of another tokenizer, though of the same form, are refused by name.
    manifest = tmp_path / "two" / "train" / "manifest.json"
    about = json.loads(manifest.read_text())
    theirs = about["tokenizer"]
    manifest.write_text(json.dumps({**about, "tokenizer": "0123456789abcdef"}))
    refused = command("train", *train, "fit.steps=5", "name=other", cwd=tmp_path)
    assert refused.returncode == 2
    assert "0123456789abcdef" in refused.stderr
    assert theirs in refused.stderr


@pytest.mark.slow
def test_a_sharded_generator_is_killed_goes_on_and_is_exported_whole(tmp_path: Path) -> None:
    import signal

    from test_resume import assert_same, start

    averaged = [word for word in SAME if word != "fit.ema=0"] + ["fit.ema=0.9", "fit.steps=30"]
    words = ["train", "name=digits", *averaged, "fit.save_every=5", "fit.val_every=7"]
    ranks = ["trainer=fsdp2", *TWO[1:], "fit.batch_size=4"]
    places = [tmp_path / name for name in ("alone", "whole", "stopped")]
    for place in places:
        place.mkdir()
    process = start([*words, *ranks], places[2], "generator")
    process.send_signal(signal.SIGKILL)
    process.wait()
    for place, more in zip(places, (["fit.batch_size=8"], ranks, ranks)):
        done = command(*words, *more, cwd=place)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "generator: going on from" in done.stdout
    models = [place / "outputs" / "digits" / "model" for place in places]
    assert_same(models[1], models[2])
    alone, sharded = (load_file(model / "generator.safetensors") for model in models[:2])
    assert alone.keys() == sharded.keys()
    for key, value in alone.items():
        torch.testing.assert_close(sharded[key], value, rtol=1e-3, atol=1e-4, msg=key)
