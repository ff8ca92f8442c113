"""The convert command makes whole pipelines of published files, tokenizer and generator."""

from pathlib import Path

import pytest
import tiny_text
import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file
from test_llama_generators import CLASSES, GRID, Weights, written_elm
from test_llamagen_tokenizer import weights as llamagen_vq
from test_mar_xar import reference_xar

from argen import cli
from argen.build import build
from argen.generators.drafter.feature_drafter import load_drafter
from argen.interop import lantern, mar_klvae
from argen.pipeline import load
from argen.pipeline.keys import image_keys
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec

GOLDEN = Path(__file__).parents[1] / "golden"
SIDE = 8  # pixels, unless said otherwise; every tokenizer here halves it
# The published runs are kept without their tokenizers, whose files are written here.
__all__ = ["llamagen_vq"]


def convert(monkeypatch, capsys, *words):
    """Run `argen convert`; returns exit status and errors."""
    monkeypatch.setattr("sys.argv", ["argen", "convert", *words])
    return run(capsys)


def run(capsys):
    """Run the command line as it is set; returns exit status and errors."""
    GlobalHydra.instance().clear()
    try:
        cli.main()
        status = 0
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    return status, capsys.readouterr().err


def kl_file(path, *, dim):
    """Write a KL autoencoder of two levels under the published keys."""
    side = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": dim}
    parts = {"Encoder": side, "Decoder": side}
    config = mar_klvae.tokenizer_config(
        {"AutoencoderKL": {"embed_dim": dim}, **parts}, image_size=SIDE
    )
    torch.manual_seed(0)
    found = {}
    for key, value in build(config).state_dict().items():
        for i in range(2):
            key = key.replace(f"encoder.levels.{i}.", f"encoder.down.{i}.")
            key = key.replace(f"decoder.levels.{i}.", f"decoder.up.{1 - i}.")
        for ours, theirs in (("0", "block_1"), ("1", "attn_1"), ("2", "block_2")):
            key = key.replace(f"middle.{ours}", f"mid.{theirs}")
        key = key.replace(".blocks.", ".block.").replace(".shortcut.", ".nin_shortcut.")
        key = key.replace("resample", "downsample" if "encoder" in key else "upsample")
        if ".qkv." in key:
            for name, piece in zip("qkv", value.chunk(3), strict=True):
                found[key.replace(".qkv.", f".{name}.")] = piece
        elif not key.startswith("quantizer."):
            found[key.replace(".out.", ".proj_out.")] = value
    torch.save({"model": found}, path)
    return str(path)


def golden(name, path, **wrapped):
    """Write the weights of a recorded run as a file of its project."""
    weights = load_file(str(GOLDEN / name / "weights.safetensors"))
    torch.save({**wrapped, "model": weights}, path)
    return str(path)


def mar_files(tmp_path, vq):
    return golden("mar", tmp_path / "mar.pth"), kl_file(tmp_path / "kl.ckpt", dim=4), SIDE


def xar_files(tmp_path, vq):
    spec = {"kind": "continuous", "segments": [{"shape": [4, 4], "dim": 3}]}
    config = for_codes(preset("generator", "tiny_xar"), CodeSpec.of(spec), num_classes=5)
    torch.save(reference_xar(build(config)), tmp_path / "xar.pth")
    return str(tmp_path / "xar.pth"), kl_file(tmp_path / "kl.ckpt", dim=3), SIDE


def nar_files(tmp_path, vq):
    torch.save({"model": vq | {"quantize.embedding.weight": torch.randn(96, 8)}}, tmp_path / "vq")
    return golden("nar-c2i", tmp_path / "nar.pt"), str(tmp_path / "vq"), SIDE


def elm_files(tmp_path, vq):
    ids, w = torch.zeros(1, GRID**2, 4, dtype=torch.long), Weights()
    written_elm(w, ids, torch.tensor([CLASSES]), parts=4, bits=3, adaln=True)
    torch.save(dict(w), tmp_path / "elm.pt")
    return str(tmp_path / "elm.pt"), golden("binary-ae", tmp_path / "ae.th"), 2 * GRID


FILES = {"mar": mar_files, "xar": xar_files, "nar": nar_files, "elm": elm_files}
HEADS = {"mar": 4, "xar": 4, "nar": 4, "elm": 3}


@pytest.mark.parametrize("source", FILES)
def test_a_pipeline_is_made_and_draws(source, tmp_path, monkeypatch, capsys, llamagen_vq):
    ckpt, tokenizer, side = FILES[source](tmp_path, llamagen_vq)
    out = tmp_path / "model"
    words = [f"source={source}", f"ckpt={ckpt}", f"out={out}", f"image_size={side}"]
    words.append(f"+options.heads={HEADS[source]}")
    status, error = convert(monkeypatch, capsys, *words, f"tokenizer_ckpt={tokenizer}")
    assert status == 0, error
    pipe = load(out)
    assert pipe.generator.spec == pipe.tokenizer.spec
    samples = pipe([1], n=2, seed=0)
    assert samples.images.shape == (2, 3, side, side)
    assert samples.images.isfinite().all()


@pytest.mark.parametrize(("asked", "taken"), [(None, "model"), ("ema", "ema"), ("model", "model")])
def test_which_copy_of_the_weights_is_taken_is_told_and_chosen(
    asked, taken, tmp_path, monkeypatch, capsys, llamagen_vq
):
    averaged = {key: value + 1 for key, value in llamagen_vq.items()}
    torch.save({"ema": averaged, "model": llamagen_vq}, tmp_path / "vq.pt")
    words = ["source=llamagen", f"ckpt={tmp_path / 'vq.pt'}", f"out={tmp_path / 'model'}"]
    words += ["image_size=8"] + [f"+tokenizer_options.copy={asked}"] * (asked is not None)
    monkeypatch.setattr("sys.argv", ["argen", "convert", *words])
    GlobalHydra.instance().clear()
    cli.main()
    assert f"vq.pt holds several copies; {taken} is taken" in capsys.readouterr().out
    pipe = load(tmp_path / "model")
    given = {"model": llamagen_vq, "ema": averaged}[taken]["quantize.embedding.weight"]
    assert torch.equal(pipe.tokenizer.quantizer.codebook.weight, given)
    assert pipe.provenance["copies"] == {"tokenizer": taken}


def test_a_copy_that_is_not_there_is_refused(tmp_path, monkeypatch, capsys, llamagen_vq):
    torch.save({"model": llamagen_vq}, tmp_path / "vq.pt")
    words = ["source=llamagen", f"ckpt={tmp_path / 'vq.pt'}", f"out={tmp_path / 'model'}"]
    words += ["image_size=8", "+tokenizer_options.copy=ema"]
    status, error = convert(monkeypatch, capsys, *words)
    assert status == 2
    assert "holds no copy 'ema' of the weights; it holds model" in error


def test_a_released_model_of_texts_is_told_its_encoder(tmp_path, monkeypatch, capsys, llamagen_vq):
    pytest.importorskip("transformers")
    vq = llamagen_vq | {"quantize.embedding.weight": torch.randn(80, 8)}
    torch.save({"model": vq}, tmp_path / "vq")
    words = [f"ckpt={golden('llamagen-t2i', tmp_path / 't2i.pt')}", f"out={tmp_path / 'model'}"]
    words += [f"tokenizer_ckpt={tmp_path / 'vq'}", f"image_size={SIDE}", "+options.heads=4"]
    status, error = convert(monkeypatch, capsys, "source=llamagen", *words)
    assert status == 0, error

    line = ["argen", "sample", f"model={tmp_path / 'model'}", "text=two cats", "n=2", "cfg=2"]
    line.append(f"out={tmp_path / 'drawn'}")
    encoder = tiny_text.save(tmp_path / "t5", width=24)
    wide = tiny_text.save(tmp_path / "wide", width=32)
    for path, expected in ((None, "text_encoder=pretrained"), (wide, "(120, 24)"), (encoder, "")):
        more = ["text_encoder=pretrained", f"text_encoder.path={path}"] if path else []
        monkeypatch.setattr("sys.argv", line + more)
        status, error = run(capsys)
        assert status == (2 if expected else 0), error
        assert expected in error
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    second = image_keys(0, 2)[1]
    assert names == ["00000-two-cats-seed0.png", f"00001-two-cats-seed{second}.png", "grid.png"]


def test_a_missing_or_foreign_tokenizer_and_unknown_options_are_refused(
    tmp_path, monkeypatch, capsys
):
    ckpt, _, side = mar_files(tmp_path, None)
    other = kl_file(tmp_path / "kl16.ckpt", dim=16)
    words = ["source=mar", f"ckpt={ckpt}", f"out={tmp_path}/model", f"image_size={side}"]
    words.append("+options.heads=4")
    status, error = convert(monkeypatch, capsys, *words)
    assert status == 2
    assert "tokenizer_ckpt=FILE" in error
    words.append(f"tokenizer_ckpt={other}")
    status, error = convert(monkeypatch, capsys, *words)
    assert status == 2
    assert "(dim 16)" in error
    assert "(dim 4)" in error
    assert not (tmp_path / "model").exists()
    status, error = convert(monkeypatch, capsys, *words, "+options.head=4")
    assert status == 2
    assert "no option 'head' for a generator. Did you mean 'heads'?" in error
    status, error = convert(monkeypatch, capsys, *words, "+tokenizer_options.scal=1")
    assert status == 2
    assert "no option 'scal' for a tokenizer. Did you mean 'scale'?" in error


def test_images_smaller_than_a_code_are_refused(tmp_path, monkeypatch, capsys):
    ckpt = golden("nar-c2i", tmp_path / "nar.pt")
    words = ["source=nar", f"ckpt={ckpt}", f"out={tmp_path}/model", "image_size=8"]
    status, error = convert(monkeypatch, capsys, *words, "+options.heads=4")
    assert status == 2
    assert "choose a larger image_size" in error


def test_a_released_drafter_becomes_a_directory(tmp_path, monkeypatch, capsys):
    ckpt, out = tmp_path / "pytorch_model.bin", tmp_path / "drafter"
    weights = load_file(str(GOLDEN / "lantern-drafter" / "weights.safetensors"))
    width = weights["fc.weight"].shape[0]
    keys = ("embed_tokens.", "fc.", "layers.")  # the record also has its target's head
    weights = {key: value for key, value in weights.items() if key.startswith(keys)}
    torch.save(weights, ckpt)
    words = ["source=lantern", f"ckpt={ckpt}", f"out={out}"]
    status, error = convert(monkeypatch, capsys, *words, "+options.heads=4")
    assert status == 0, error
    drafter = load_drafter(out)
    assert (drafter.dim, drafter.prefix_rows, drafter.spec.grid) == (width, 119, (16, 16))
    assert drafter.blocks[0].attention.heads == 4
    imported = lantern.import_drafter(weights, source="file", heads=4).build()
    for key, value in imported.state_dict().items():
        assert torch.equal(value, drafter.state_dict()[key])
    large = ["+options.heads=4", "+options.input_type=t2i2"]
    assert convert(monkeypatch, capsys, *words, *large)[0] == 0
    assert load_drafter(out).spec.length == 1024
    for changed, told in (
        (["+options.heads=7"], "must be divisible by 7 heads"),
        (["+options.head=4"], "no option 'head' for a drafter. Did you mean 'heads'?"),
        (["+options.input_type=t3i"], "Unknown input_type 't3i'"),
        (["ckpt=null"], "add ckpt=FILE"),
        ([f"tokenizer_ckpt={ckpt}"], "leave tokenizer_ckpt out"),
        ([f"ckpt={golden('mar', tmp_path / 'mar.pth')}"], "is not a LANTERN drafter"),
    ):
        status, error = convert(monkeypatch, capsys, *words, *changed)
        assert status == 2
        assert told in error
