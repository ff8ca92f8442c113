"""Two processes train as one does: gloo on a CPU, by command."""

from __future__ import annotations

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


def weights(place: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(place / "outputs" / "two" / "model" / f"{part}.safetensors")


@pytest.mark.slow
def test_two_ranks_train_both_stages_as_one_process(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("one", "both")]
    for place, words in zip(places, (["fit.batch_size=8"], [*TWO, "fit.batch_size=4"])):
        place.mkdir()
        done = command("train", "name=two", *SAME, *words, cwd=place)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("samples          ") == 1, "one rank reports"
    for part in ("tokenizer", "generator"):
        alone, together = (weights(place, part) for place in places)
        assert alone.keys() == together.keys()
        for key, value in alone.items():
            if value.is_floating_point():
                torch.testing.assert_close(together[key], value, rtol=1e-4, atol=1e-5, msg=key)


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
