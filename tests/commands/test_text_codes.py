"""`argen tokenize text_encoder=...`: features of captions beside the codes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import tiny_text
import torch
from PIL import Image
from runs import call

from argen.data.codes import CodeDataset
from argen.data.emoji import emoji
from argen.runtime.files import read_json
from argen.text.pretrained import PretrainedText

pytest.importorskip("transformers")
EMOJI = ["data=emoji", "data.categories=[symbols,food]"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.save(tmp_path_factory.mktemp("text") / "tiny-t5")


def tokenize(workplace: Path, *words: str) -> list[str]:
    model = workplace / "outputs" / "digits" / "tokenizer" / "model"
    return ["tokenize", f"model={model}", *words]


def test_features_lie_beside_the_codes(
    workplace: Path,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(encoder.parent)  # the path is given as it looks from here
    words = [
        *EMOJI,
        "text_encoder=pretrained",
        f"text_encoder.path={encoder.name}",
        "text_encoder.length=6",
    ]
    out = tmp_path / "codes"
    line = tokenize(workplace, *words, f"out={out}", "views=2", "shard_size=100", "batch_size=7")
    status, said, err = call(monkeypatch, capsys, *line)
    assert status == 0, err
    assert "text: tiny-t5 (6 tokens, 16 wide" in said

    text = PretrainedText(encoder, length=6)
    source = emoji(16, categories=["symbols", "food"])
    for split, images in (("train", source.train), ("val", source.val)):
        codes = CodeDataset(out, split=split)
        assert codes.text is not None
        assert codes.text["spec"] == text.spec.to_dict()
        assert codes.text["encoder"]["path"] == str(encoder.resolve())
        assert images.captions is not None
        for i in (0, 5, len(codes) - 1):
            want = text([images.captions[i]])
            assert codes[i]["text_mask"].tolist() == want.mask_BT[0].tolist()
            got = codes[i]["text"].float()
            assert torch.allclose(got, want.features_BTF[0], atol=2e-3)

    # The same command goes on; another encoder is not mixed in.
    assert call(monkeypatch, capsys, *line)[0] == 0
    other = tiny_text.save(tmp_path / "other", seed=1)
    line = [
        word.replace(f"text_encoder.path={encoder.name}", f"text_encoder.path={other}")
        for word in line
    ]
    status, _, err = call(monkeypatch, capsys, *line)
    assert status == 2
    assert "another text" in err


def test_a_folder_needs_captions(
    workplace: Path,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    text = ["text_encoder=pretrained", f"text_encoder.path={encoder}", "text_encoder.length=6"]
    data = ["data=folder", f"data.path={tmp_path}", "data.unconditional=true", "data.holdout=0.5"]
    line = tokenize(workplace, *data, *text, f"out={tmp_path / 'codes'}")
    status, _, err = call(monkeypatch, capsys, *line)
    assert status == 2
    assert "have captions" in err
    assert "data.captions=captions.csv" in err

    (tmp_path / "captions.csv").write_text("file,caption\n3.png,red star\n")
    status, _, err = call(monkeypatch, capsys, *line, "data.captions=captions.csv")
    assert status == 2
    assert "3 of 4 images have no caption" in err

    for i in range(4):
        (tmp_path / f"{i}.txt").write_text("a star" if i % 2 else "a red star")
    status, _, err = call(monkeypatch, capsys, *line, "data.captions=beside")
    assert status == 0, err
    codes = CodeDataset(tmp_path / "codes", split="train")
    assert sorted(int(codes[i]["text_mask"].sum()) for i in range(2)) in ([3, 3], [3, 4], [4, 4])
    for i in range(2):
        number = int(folder_name(tmp_path, int(codes[i]["index"])))
        assert int(codes[i]["text_mask"].sum()) == (3 if number % 2 else 4)


def folder_name(root: Path, index: int) -> str:
    from argen.data.folder import folder

    source = folder(root, image_size=16, holdout=0.5, unconditional=True)
    return Path(source.train.names[index]).stem


def test_a_wrong_path_is_an_error_before_anything_is_written(
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        *EMOJI,
        "text_encoder=pretrained",
        "text_encoder.path=nowhere",
        f"out={tmp_path / 'codes'}",
    ]
    status, _, err = call(monkeypatch, capsys, *tokenize(workplace, *words))
    assert status == 2
    assert "nowhere is no text model" in err
    assert "save_pretrained" in err
    assert not (tmp_path / "codes").exists()


def test_codes_without_text_are_what_they_were(workplace: Path) -> None:
    plan = read_json(workplace / "outputs" / "digits" / "codes" / "train" / "plan.json")
    assert "text" not in plan
    assert "extras" not in plan


def test_tar_shards_bring_their_captions(
    workplace: Path,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    captions = ["a red heart", "two cats", "house", "a blue star"] * 3
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            for i, caption in enumerate(captions):
                image = io.BytesIO()
                Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(image, format="PNG")
                parts = {"png": image.getvalue(), "cls": str(i % 2).encode()}
                for kind, data in (parts | {"txt": caption.encode()}).items():
                    member = tarfile.TarInfo(f"{i:03d}.{kind}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    text = ["text_encoder=pretrained", f"text_encoder.path={encoder}", "text_encoder.length=6"]
    urls = [f"data.urls={tmp_path / 'train.tar'}", f"data.val_urls={tmp_path / 'val.tar'}"]
    data = ["data=webdataset", *urls, "data.num_classes=2"]
    line = tokenize(workplace, *data, *text, f"out={tmp_path / 'codes'}")
    status, _, err = call(monkeypatch, capsys, *line)
    assert status == 0, err
    codes = CodeDataset(tmp_path / "codes", split="train")
    read = PretrainedText(encoder, length=6)(captions).features_BTF
    assert len(codes) == len(captions)
    for i in range(len(codes)):
        assert torch.allclose(codes[i]["text"].float(), read[i], atol=2e-3)
