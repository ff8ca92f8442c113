"""Files that are damaged, of another kind or no files at all: one line each, no traceback."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import argen
from argen.build import build
from argen.data.codes import CodeDataset
from argen.decoding.speculative import Speculative
from argen.errors import CheckpointError, UserError
from argen.generators.drafter.feature_drafter import load_drafter, save_drafter
from argen.pipeline import load
from argen.runtime.checkpoint import load_strict, not_finite, read_weights, save_weights
from argen.runtime.files import file_inside, read_json, sha256_of

GOLDEN = Path(__file__).parents[1] / "golden" / "written_by_0_1"
DEEP = "[" * 100_000
WEIGHTS = ("tokenizer.safetensors", "generator.safetensors")


@pytest.fixture
def saved(model: Path, tmp_path: Path) -> Path:
    """Return a model directory of today, checksums included."""
    load(model).save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("name", WEIGHTS)
def test_flipped_bits_are_found(name, saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["sha256"] == {n: sha256_of(saved / n) for n in WEIGHTS}
    load(saved)
    file = saved / name
    sound = file.read_bytes()
    for place in (len(sound) - 3, len(sound) // 2, len(sound) * 3 // 4):
        damaged = bytearray(sound)
        damaged[place] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{name} is not the file"):
            load(saved)
    file.write_bytes(sound)
    load(saved)


def test_a_directory_without_checksums_opens(model):
    assert "sha256" not in json.loads((model / "config.json").read_text())
    load(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_not_finite_are_refused(name, value, model, command):
    weights = read_weights(model / name)
    key = next(k for k, v in weights.items() if v.is_floating_point() and v.numel() > 3)
    weights[key].view(-1)[2] = value
    save_weights(weights, model / name)
    with pytest.raises(CheckpointError, match=f"{key} holds NaN or infinity"):
        load(model)
    status, err = command("sample", "model=model", "n=1", "device=cpu")
    assert status == 2
    assert key in err
    assert "before the training failed" in err


def test_what_is_not_finite_is_named():
    large = {"large": torch.full((4,), 3e38), "ids": torch.tensor([1]), "none": torch.zeros(0)}
    assert not_finite(large) is None, "sums of these overflow, they themselves do not"
    half = torch.tensor([1.0, float("inf")], dtype=torch.bfloat16)
    assert not_finite({**large, "half": half}) == "half"


def test_a_file_of_something_else_is_named():
    module = torch.nn.Linear(2, 2)
    for held in ([1, 2], None, "text", {"weight": 3}, {"weight": {"a": torch.zeros(2)}}):
        with pytest.raises(CheckpointError, match=r"^a\.pt "):
            load_strict(module, held, source="a.pt")


@pytest.mark.parametrize(
    "text", ["[]", "null", "3", '"x"', "", "{", DEEP, '{"a":' * 50_000, "\xff"]
)
@pytest.mark.parametrize("name", ["config.json"])
def test_json_that_is_something_else(name, text, model, command):
    (model / name).write_text(text, encoding="latin-1")
    status, err = command("sample", "model=model", "n=1", "device=cpu")
    assert status == 2, err
    assert "config.json" in err
    with pytest.raises(CheckpointError):
        load_drafter(model)
    with pytest.raises(CheckpointError):
        Speculative(str(model))


@pytest.mark.parametrize("name", ["config.json", *WEIGHTS])
@pytest.mark.parametrize("kind", ["pipe", "directory", "link"])
def test_only_files_of_the_directory_are_read(name, kind, model):
    outside = model.parent / "outside"
    shutil.move(model / name, outside)
    if kind == "pipe":
        os.mkfifo(model / name)  # reading it would wait for ever
    elif kind == "directory":
        (model / name).mkdir()
    else:
        (model / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.") if kind == "link" else ""):
        load(model)
    if kind == "link":
        load(model, trust=True)


def test_names_stay_inside(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("{}")
    for name in ("../b", str(tmp_path / "b"), "x/../../b"):
        with pytest.raises(CheckpointError, match="outside"):
            file_inside(tmp_path / "a", name)
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    file_inside(tmp_path / "linked", "c")  # the directory itself may be reached by a link
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_json(tmp_path / "pipe")


def test_a_drafter_has_its_checksum(tmp_path):
    spec = {"kind": "discrete", "segments": [{"shape": [2, 2], "vocab_sizes": [8], "dim": 2}]}
    path = "argen.generators.drafter.feature_drafter.FeatureDrafter"
    config = {"_target_": path, "spec": spec, "dim": 8, "heads": 2, "ffn_hidden": 8}
    drafter = build(config)
    for name, value in drafter.state_dict().items():
        value.copy_(torch.full_like(value, 0.5) if "rope" not in name else value)
    save_drafter(drafter, tmp_path)
    load_drafter(tmp_path)
    weights = tmp_path / "drafter.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-2] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="sha256"):
        load_drafter(tmp_path)


STRANGE = [None, [], {}, "", "abc", -1, 0, 1.5, True, [1, 2], {"a": []}, "NaN", "../x", [None]]


def spoiled(rng: random.Random, file: Path) -> str:
    """Damage a file in one of many ways; returns which."""
    sound = file.read_bytes()
    if file.suffix == ".json" and rng.random() < 0.7:
        config = json.loads(sound)
        node = config
        while True:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            inner = node[key]
            if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
                node = inner
                continue
            value = rng.choice(STRANGE)
            node[key] = value
            break
        file.write_text(json.dumps(config))
        return f"{file.name}: {key} is {value!r}"
    kind = rng.choice(("cut", "bit", "empty", "longer", "noise", "header"))
    if kind == "cut":
        file.write_bytes(sound[: rng.randrange(len(sound))])
    elif kind == "bit":
        place = rng.randrange(min(len(sound), 2000))
        file.write_bytes(sound[:place] + bytes([rng.randrange(256)]) + sound[place + 1 :])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "longer":
        file.write_bytes(sound + rng.randbytes(100))
    elif kind == "noise":
        file.write_bytes(rng.randbytes(200))
    else:
        file.write_bytes(b"\xff" * 8 + sound[8:])
    return f"{file.name}: {kind}"


def test_damaged_files_never_end_in_a_traceback(saved, tmp_path):
    """400 of them: models, their weights as a checkpoint, codes."""
    warnings.simplefilter("ignore")
    rng, refused = random.Random(3), 0
    codes = tmp_path / "codes"
    shutil.copytree(GOLDEN / "codes" / "val", codes)
    torch.save({"model": read_weights(saved / WEIGHTS[0])}, tmp_path / "a.pt")
    readers = [
        (saved / "config.json", lambda: load(saved)),
        (saved / WEIGHTS[0], lambda: load(saved)),
        (saved / WEIGHTS[1], lambda: Speculative(str(saved))),
        (tmp_path / "a.pt", lambda: read_weights(tmp_path / "a.pt")),
        (codes / "manifest.json", lambda: CodeDataset(codes)),
        (codes / "codes-00000.npy", lambda: CodeDataset(codes)),
        (codes / "labels-00000.npy", lambda: CodeDataset(codes)),
    ]
    sound = {file: file.read_bytes() for file, _ in readers}
    for _ in range(400):
        file, read = readers[0] if rng.random() < 0.4 else rng.choice(readers)
        how = spoiled(rng, file)
        try:
            read()
        except UserError as error:
            refused += 1
            told = str(error)
        except Exception as error:
            raise AssertionError(f"{how}: {type(error).__name__}: {error}") from error
        else:
            told = ""
        file.write_bytes(sound[file])
        assert len(told.splitlines()) <= 3, how
    assert refused > 200
    assert argen.load(saved).generator is not None
