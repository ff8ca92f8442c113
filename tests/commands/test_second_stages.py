"""Trainings that start from another model's weights, by command."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_tokenizer_recipes import SHORT, psnr, train
from torch import Tensor

QUICK = [
    *SHORT,
    "trainer.log_every_n_steps=10",
    "fit.steps=12",
    "fit.val_every=12",
    "data.categories=[smileys]",
]


def weights(place: Path, name: str) -> dict[str, Tensor]:
    return load_file(place / "outputs" / name / "tokenizer" / "model" / "tokenizer.safetensors")


def parts_that_moved(old: dict[str, Tensor], new: dict[str, Tensor]) -> set[str]:
    """Return the parts of `new` of which a weight differs from `old`."""
    return {
        key.partition(".")[0]
        for key, value in new.items()
        if key not in old or old[key].shape != value.shape or (old[key] != value).any()
    }


def test_titok_in_two_stages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    names = ("tiny_maskgit_vqgan", "tiny_titok_stage1", "tiny_titok_stage2")
    for name in names:
        train(monkeypatch, tmp_path, f"experiment=tokenizer/{name}", *QUICK)
    assert (
        "new: decoder, encoder, quantizer" in caplog.text
    )  # a first stage knows its teacher alone
    assert "not used: proxy.encoder" in caplog.text
    teacher, first, second = (weights(tmp_path, name) for name in names)
    taught = {key.removeprefix("proxy."): v for key, v in first.items() if key.startswith("proxy.")}
    assert not parts_that_moved(teacher, taught)
    assert parts_that_moved(first, second) == {"decoder", "proxy"}


def test_a_generative_decoder_starts_from_a_plain_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train(monkeypatch, tmp_path, "experiment=tokenizer/tiny_wetok", *QUICK, "fit.steps=60")
    feels = ["objective.discriminator_start=2", "objective.adversarial_start=4"]
    train(monkeypatch, tmp_path, "experiment=tokenizer/tiny_wetok_stage2", *QUICK, *feels)
    first, second = weights(tmp_path, "tiny_wetok"), weights(tmp_path, "tiny_wetok_stage2")
    assert parts_that_moved(first, second) == {"decoder"}
    widened = second["decoder.conv_in.weight"]
    assert widened.shape[1] == 2 * first["decoder.conv_in.weight"].shape[1]
    # It goes on from what the first stage had learnt.
    runs = tmp_path / "outputs"
    assert psnr(runs / "tiny_wetok_stage2") > psnr(runs / "tiny_wetok") - 1.5


def test_another_decoder_for_the_same_codes(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    train(monkeypatch, tmp_path, "experiment=tokenizer/tiny_vq", *QUICK)
    train(monkeypatch, tmp_path, "experiment=tokenizer/tiny_decoder", *QUICK)
    assert "new: decoder, post_quant_conv" in caplog.text
    moved = parts_that_moved(weights(tmp_path, "tiny_vq"), weights(tmp_path, "tiny_decoder"))
    assert moved == {"decoder", "post_quant_conv"}
    # Once started, a run is not mixed with one from other weights.
    with pytest.raises(SystemExit) as stop:
        train(monkeypatch, tmp_path, "experiment=tokenizer/tiny_decoder", *QUICK, "init.fresh=[]")
    assert stop.value.code == 2
    assert "init.fresh" in capsys.readouterr().err
    for words, told in (
        (["tiny_decoder", "init.model=null", "init.fresh=[]"], "must start from given weights"),
        (["tiny_decoder", "init.fresh=[]"], "of another shape (decoder.conv_in"),
        (["tiny_decoder", "init.fresh=[decodr]"], "Did you mean 'decoder'"),
        (["tiny_decoder", "init.model=null"], "give init.model=DIR too"),
        (["tiny_titok_stage1", "init.proxy=null"], "init.proxy=DIR"),
        (["tiny_titok_stage1", "init.proxy=outputs/tiny_vq/tokenizer/model"], "cannot start from"),
        (["tiny_fsq", "init.proxy=outputs/tiny_vq/tokenizer/model"], "has no proxy"),
        (["tiny_kl", "init.model=outputs/tiny_vq/tokenizer/model"], "quantizer.batches"),
        (["tiny_kl", "init.model=nowhere"], "is not an argen model directory"),
    ):
        words[0] = f"experiment=tokenizer/{words[0]}"
        with pytest.raises(SystemExit) as stop:
            train(monkeypatch, tmp_path, *QUICK, "name=refused", *words)
        assert stop.value.code == 2
        assert told in capsys.readouterr().err
        assert not (tmp_path / "outputs" / "refused" / "tokenizer").exists()
