"""argen computes what the published implementations computed, and the checker can say no."""

import json
import subprocess
import sys
from pathlib import Path

import parity
import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
GOLDEN = sorted(path.parent for path in (ROOT / "tests" / "golden").glob("*/card.json"))


def run(capsys, *directories):
    """Return exit status and output lines of a run of the tool, in this process."""
    arguments, sys.argv = sys.argv, ["parity.py", *map(str, directories)]
    try:
        status = parity.main()
    finally:
        sys.argv = arguments
    return status, capsys.readouterr().out.splitlines()


def altered(source, target, *, tensors=None, card=None):
    """Copy a fixture with other tensors or another card."""
    target.mkdir()
    io = load_file(str(source / "io.safetensors"))
    save_file({k: v.contiguous() for k, v in (tensors or io).items()}, target / "io.safetensors")
    (target / "weights.safetensors").write_bytes((source / "weights.safetensors").read_bytes())
    original = json.loads((source / "card.json").read_text())
    (target / "card.json").write_text(json.dumps({**original, **(card or {})}))
    return target


@pytest.mark.parametrize("directory", GOLDEN, ids=lambda path: path.name)
def test_recorded_run(capsys, directory):
    status, lines = run(capsys, directory)
    assert len(lines) == 1
    name, counts, error, verdict = lines[0].split()
    checked, total = map(int, counts.split("/"))
    assert (name, verdict, status) == (directory.name, "PASS", 0)
    assert checked == total > 0
    assert float(error.removeprefix("max_err=")) < 1.0


@pytest.mark.parametrize("name", ["llamagen-c2i-gqa", "topk-topp"])
def test_one_wrong_number_fails(capsys, tmp_path, name):
    source = ROOT / "tests" / "golden" / name
    good = altered(source, tmp_path / "same")
    assert run(capsys, good)[0] == 0
    fixture = parity.Fixture(source)
    for key in fixture.expected:
        tensors = {k: v.clone() for k, v in fixture.io.items()}
        flat = tensors[key].view(-1)
        where = int(flat.float().abs().nan_to_num().argmax())
        flat[where] = flat[where] + 1
        bad = altered(source, tmp_path / f"bad-{key}", tensors=tensors)
        status, lines = run(capsys, bad, good)
        assert status == 1
        assert lines[0].endswith("FAIL"), key
        assert lines[1].endswith("PASS")


def test_an_expected_tensor_that_nobody_computes_fails(capsys, tmp_path):
    source = ROOT / "tests" / "golden" / "llamagen-c2i-gqa"
    fixture = parity.Fixture(source)
    tensors = {**fixture.io, "never_heard_of": torch.zeros(3)}
    status, lines = run(capsys, altered(source, tmp_path / "more", tensors=tensors))
    expected = len(fixture.expected)
    assert status == 1
    assert lines[0].split()[1] == f"{expected}/{expected + 1}"
    assert lines[0].endswith("FAIL")


def test_nothing_to_check_fails(capsys, tmp_path):
    source = ROOT / "tests" / "golden" / "topk-topp"
    fixture = parity.Fixture(source)
    inputs = {k: fixture[k] for k in fixture.inputs}
    status, lines = run(capsys, altered(source, tmp_path / "none", tensors=inputs))
    assert status == 1
    assert lines[0].split()[1] == "0/0"


def test_unsupported_system_fails(tmp_path):
    source = ROOT / "tests" / "golden" / "topk-topp"
    directory = altered(source, tmp_path / "other", card={"system": "nobody-wrote-this"})
    command = [sys.executable, str(ROOT / "tools" / "parity.py"), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("other 0/")
    assert done.stdout.strip().endswith("FAIL")
    assert "not supported" in done.stderr
