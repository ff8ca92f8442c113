"""Directories made to run code when they are opened: each is refused, and nothing has happened.

Every case plants a canary file when it works; `pickled_canary` shows that the pickles do.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import argen
from argen.build import build
from argen.data.codes import CodeDataset
from argen.errors import CheckpointError, UserError
from argen.evaluation.reference import Reference
from argen.evaluation.sample_files import open_samples
from argen.generators.drafter.feature_drafter import load_drafter
from argen.recipes.captions import reader_for
from argen.runtime.checkpoint import read_weights
from argen.text.reader import TextReader

GOLDEN = Path(__file__).parents[1] / "golden" / "written_by_0_1"


class Plants:
    """Unpickles by running a shell command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def shell(canary):
    """Return a node that would run a command."""
    return {"_target_": "os.system", "command": f"touch {canary}"}


def prepare(model, canary):
    """Put what the descriptions below name into the directory and beside it."""
    torch.save({"weights": Plants(canary)}, model / "weights.pt")
    (model / "inside.json").write_text(json.dumps(shell(canary)))
    inner = model / "inner"
    inner.mkdir()
    shutil.copy(model / "tokenizer.safetensors", inner)
    config = json.loads((model / "config.json").read_text())
    (inner / "config.json").write_text(json.dumps({**config, "tokenizer": shell(canary)}))
    (model.parent / "planted.py").write_text(f"open({str(canary)!r}, 'w').close()\n")


# What a configuration says in the place of a tokenizer; {dir} is the model, {canary} the canary.
DESCRIPTIONS = {
    "pickle": {
        "_target_": "argen.runtime.checkpoint.read_weights",
        "path": "{dir}/weights.pt",
        "trust": True,
    },
    "pickle, where it lay before": {
        "_target_": "argen.checkpoint.read_weights",
        "path": "model/weights.pt",
        "trust": True,
    },
    "shell command as an address": {
        "_target_": "argen.data.tar_source.local_file",
        "url": "pipe:touch {canary}",
        "cache_dir": "{dir}/cache",
    },
    "builder of a configuration that is read": {
        "_target_": "argen.build.build",
        "config": {"_target_": "argen.runtime.files.read_json", "path": "{dir}/inside.json"},
        "trust": True,
    },
    "builder under another module's name": {
        "_target_": "argen.pipeline.model_directory.build_stored",
        "config": {"_target_": "argen.runtime.files.read_json", "path": "{dir}/inside.json"},
        "of": {"_target_": "argen.build.locate", "path": "builtins.object", "trust": True},
        "source": "x",
        "trust": True,
    },
    "loader of another directory": {
        "_target_": "argen.pipeline.pipeline.load",
        "path": "{dir}/inner",
        "trust": True,
    },
    "loader under its short name": {
        "_target_": "argen.pipeline.load",
        "path": "{dir}/inner",
        "trust": True,
    },
    "import": {"_target_": "argen.build.import_module", "name": "planted"},
    "any file is written": {
        "_target_": "argen.runtime.files.write_json",
        "path": "{canary}",
        "data": 1,
    },
    "function of Python": {"_target_": "os.system", "command": "touch {canary}"},
    "module that argen imports": {
        "_target_": "argen.runtime.cluster.subprocess.run",
        "args": ["touch", "{canary}"],
    },
    "module that a registered package imports": {
        "_target_": "argen.data.code_writer.os.system",
        "command": "touch {canary}",
    },
    "class that a registered module imports": {
        "_target_": "argen.text.prompts.Path",
        "args": "{canary}",
    },
    "data set in the place of a network": {
        "_target_": "argen.data.tar_source.webdataset",
        "urls": "pipe:touch {canary}",
    },
}


def filled(node, **names):
    """Return a description with the places filled in."""
    if isinstance(node, dict):
        return {key: filled(value, **names) for key, value in node.items()}
    if isinstance(node, list):
        return [filled(value, **names) for value in node]
    return node.format(**names) if isinstance(node, str) else node


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_tokenizer_is_never_a_call(name, model, edited, canary, command):
    prepare(model, canary)
    edited(tokenizer=filled(DESCRIPTIONS[name], dir=str(model), canary=str(canary)))
    status, err = command("sample", "model=model", "n=1", "device=cpu")
    assert status == 2, err
    assert err.startswith("error: ")
    assert "trust=true" in err or "Cannot import" in err, "the message says what to do"
    assert not canary.exists()


@pytest.mark.parametrize("part", ["generator", "tokenizer__quantizer", "generator__conditioner"])
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_nor_is_a_part_of_it(part, name, model, edited, canary, monkeypatch):
    prepare(model, canary)
    monkeypatch.chdir(model.parent)
    edited(**{part: filled(DESCRIPTIONS[name], dir=str(model), canary=str(canary))})
    with pytest.raises(UserError, match=r"trust=true|Cannot import"):
        argen.load(model)
    assert not canary.exists()


def test_an_argument_is_no_call_either(edited, canary):
    model = edited(tokenizer__image_size=[16, shell(canary)])
    with pytest.raises(UserError, match=r"os\.system"):
        argen.load(model)
    assert not canary.exists()


@pytest.mark.parametrize(
    "data",
    [
        {"_target_": "argen.data.digits.digits", "shift": "NODE"},
        {"_target_": "argen.data.tar_source.webdataset", "urls": "pipe:touch CANARY"},
        {"_target_": "argen.data.tar_source.webdataset", "urls": "PIPE:touch CANARY"},
        {"_target_": "argen.data.tar_source.webdataset", "urls": "{pipe,pi}:touch CANARY"},
        {"_target_": "argen.data.tar_source.webdataset", "urls": "a.tar::{pip,x}e:touch CANARY"},
        {"_target_": "argen.data.tar_source.webdataset", "urls": "{http,x}:/{/,}a.example/x.tar"},
        {
            "_target_": "argen.data.tar_source.webdataset",
            "urls": ["a.tar", "b.tar"],
            "val_urls": ["https://a.example/x.tar"],
        },
        {"_target_": "argen.data.captions.read_captions", "path": "CANARY"},
        {"_target_": "os.system", "command": "touch CANARY"},
        "NODE",
    ],
    ids=str,
)
def test_stored_data_reach_neither_shell_nor_network(data, edited, canary, command):
    text = json.dumps(data).replace('"NODE"', json.dumps(shell(canary)))
    edited(provenance__data_config=json.loads(text.replace("CANARY", str(canary))))
    status, err = command("evaluate", "model=model", "protocol=fd_lite", "n=10", "device=cpu")
    assert status == 2, err
    assert err.startswith("error: ")
    assert not canary.exists()


@pytest.mark.parametrize(
    "encoder",
    [
        {"_target_": "argen.text.minilm.minilm", "length": "NODE"},
        {"_target_": "argen.text.pretrained.PretrainedText", "path": "NODE"},
        {"_target_": "argen.text.pretrained.PretrainedText", "path": "https://a.example/x"},
        {"_target_": "argen.text.pretrained.find_spec", "name": "planted"},
        {"_target_": "argen.text.reader.TextReader", "config": "NODE", "trust": True},
        "NODE",
    ],
    ids=str,
)
def test_stored_text_encoders_are_no_calls(encoder, model, edited, canary):
    node = json.loads(json.dumps(encoder).replace('"NODE"', json.dumps(shell(canary))))
    with pytest.raises(UserError):
        TextReader(node)
    edited(text=node)
    with pytest.raises(UserError):
        argen.load(model)
    assert not canary.exists()


def test_nor_are_those_of_codes(tmp_path, canary):
    shutil.copytree(GOLDEN / "codes", tmp_path / "codes")
    manifest = json.loads((tmp_path / "codes" / "train" / "manifest.json").read_text())
    spec = {"name": "x", "fingerprint": "0", "dim": 4, "length": 4, "padding": "left"}
    manifest["text"] = {
        "spec": spec,
        "captions": "0",
        "encoder": {"_target_": "argen.text.minilm.minilm", "length": shell(canary)},
    }
    (tmp_path / "codes" / "train" / "manifest.json").write_text(json.dumps(manifest))
    codes = CodeDataset(tmp_path / "codes", split="train")
    conditioner = {
        "_target_": "argen.generators.conditioning.TextConditioner",
        "feature_dim": 4,
    }
    with pytest.raises(UserError, match=r"os\.system"):
        reader_for(codes, {"conditioner": conditioner})
    assert not canary.exists()


def test_a_hostile_drafter(model, canary, command):
    hostile = model.parent / "drafter"
    hostile.mkdir()
    (hostile / "config.json").write_text(json.dumps({"drafter": shell(canary)}))
    with pytest.raises(UserError, match=r"os\.system"):
        load_drafter(hostile)
    words = ("decoder=relaxed", "decoder.drafter=drafter")
    status, err = command("sample", "model=model", "n=1", "device=cpu", "trust=true", *words)
    assert status == 2, err
    assert "os.system" in err
    assert not canary.exists(), "trust in a model is not trust in a drafter"


def test_a_hostile_draft(model, canary, command):
    hostile = model.parent / "draft"
    hostile.mkdir()
    (hostile / "config.json").write_text(json.dumps({"generator": shell(canary)}))
    words = ("decoder=speculative", "decoder.draft=draft")
    status, err = command("sample", "model=model", "n=1", "device=cpu", "trust=true", *words)
    assert status == 2, err
    assert "os.system" in err
    assert not canary.exists()


def test_a_hostile_tokenizer_is_not_trained_on(edited, canary, command):
    edited(tokenizer=shell(canary))
    words = ("stage=generator", "model=model", "data=digits", "generator=tiny_gpt", "trainer=cpu")
    status, err = command("train", *words)
    assert status == 2, err
    assert "os.system" in err
    assert not canary.exists()


def test_trust_that_is_asked_for_allows_it(edited, canary):
    """The cases above would work, were they not refused."""
    model = edited(tokenizer=shell(canary))
    with pytest.raises(CheckpointError, match="describes a int where a Tokenizer belongs"):
        argen.load(model, trust=True)
    assert canary.exists()


def pickled_canary(path: Path, canary: Path, kind: str) -> Path:
    """Write a file that runs a command when its pickle is loaded."""
    if kind == "torch":
        torch.save({"state_dict": {"w": Plants(canary)}}, path)
    elif kind == "torch, old format":
        torch.save({"w": Plants(canary)}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps({"w": Plants(canary)}))
    return path


@pytest.mark.parametrize("kind", ["torch", "torch, old format", "bare"])
@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin", ".safetensors"])
def test_a_hostile_checkpoint(kind, suffix, tmp_path, canary, command):
    path = pickled_canary(tmp_path / f"a{suffix}", canary, kind)
    with pytest.raises(CheckpointError):
        read_weights(path)
    assert not canary.exists()
    if suffix == ".pt":
        status, err = command("convert", "source=llamagen", f"ckpt={path}", "out=converted")
        assert status == 2, err
        assert "trust=true" in err or kind == "bare"
        assert not canary.exists()
        if kind != "bare":
            read_weights(path, trust=True)
            assert canary.exists(), "it does run where it is trusted"


def test_a_hostile_training_checkpoint(tmp_path, canary, command):
    shutil.copytree(GOLDEN, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "expected")
    last = tmp_path / "run" / "generator" / "checkpoints" / "last.ckpt"
    held = torch.load(last, weights_only=True)
    torch.save(held | {"extra": Plants(canary)}, last)
    words = ["out=.", "name=run", "data=digits", "data.image_size=16", "tokenizer=tiny_vq"]
    words += ["generator=tiny_gpt", "trainer=cpu", "evaluate=null", "codes.views=1", "logger=none"]
    words += ["objective=tiny", "samples.per_class=1", "fit.batch_size=8", "fit.steps=8"]
    try:
        status, err = command("train", *words, "fit.val_every=4", "fit.save_every=4")
    except Exception as error:  # refused by torch itself, inside Lightning
        status, err = 2, str(error)
    assert status != 0, err
    assert not canary.exists()


def hostile_array(canary: Path) -> np.ndarray:
    """Return an array whose pickle runs a command."""
    array = np.empty(1, dtype=object)
    array[0] = Plants(canary)
    return array


def test_hostile_arrays(tmp_path, canary):
    array = hostile_array(canary)
    np.savez(tmp_path / "a.npz", mu=array, sigma=array, arr_0=array, count=array)
    with pytest.raises(UserError):
        Reference.load(tmp_path / "a.npz")
    with pytest.raises(UserError):
        list(open_samples(str(tmp_path / "a.npz")).batches(1))
    shutil.copytree(GOLDEN / "codes", tmp_path / "codes")
    for name in ("codes", "labels", "indices"):
        place = tmp_path / "codes" / "train" / f"{name}-00000.npy"
        kept = place.read_bytes()
        np.save(place, array, allow_pickle=True)
        with pytest.raises(UserError, match="damaged"):
            CodeDataset(tmp_path / "codes", split="train")
        place.write_bytes(kept)
    assert not canary.exists()
    np.load(io.BytesIO((tmp_path / "a.npz").read_bytes()), allow_pickle=True)["mu"]
    assert canary.exists(), "it does run where pickles are allowed"


def test_kept_codes_that_are_hostile(model, canary, command):
    array = hostile_array(canary)
    np.savez(model.parent / "a.npz", codes=array, names=array, spec=array)
    status, err = command("reconstruct", "model=model", "codes=a.npz", "device=cpu")
    assert status == 2, err
    assert not canary.exists()


def test_the_users_own_words_are_built_as_before():
    """What a command composes may call functions; a file may not say the same."""
    node = {"_target_": "argen.runtime.checkpoint.read_weights", "path": "/nowhere"}
    with pytest.raises(CheckpointError, match="does not exist"):
        build(node, trust=True)
    with pytest.raises(UserError, match="read_weights"):
        build(node)
