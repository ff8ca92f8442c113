"""Reading other people's checkpoint files."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from argen.errors import CheckpointError
from argen.runtime.checkpoint import load_strict, read_weights
from argen.runtime.files import replacing


class Surprise:
    """Stands for code inside a pickle."""


def test_stored_arguments_do_not_stand_in_the_way(tmp_path: Path) -> None:
    held = {"model": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=1e-4)}
    torch.save(held, tmp_path / "a.pt")
    assert torch.equal(read_weights(tmp_path / "a.pt")["model"]["w"], torch.ones(2))


def test_pickled_code_needs_trust(tmp_path: Path) -> None:
    torch.save({"model": {}, "extra": Surprise()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="trust=true"):
        read_weights(tmp_path / "a.pt")
    assert isinstance(read_weights(tmp_path / "a.pt", trust=True)["extra"], Surprise)


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1000)}, tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:300])
    with pytest.raises(CheckpointError, match=r"a\.pt cannot be read"):
        read_weights(tmp_path / "a.pt")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_do_not_fit_are_named() -> None:
    module = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(4)))
    held = module.state_dict()
    kept = {key: torch.zeros_like(held[key]) for key in held if key.endswith("weight")}
    kept |= {f"stranger.{i}": torch.ones(1) for i in range(2)} | {"0.weight": torch.zeros(3, 2)}
    before = {key: value.clone() for key, value in held.items()}
    with pytest.raises(CheckpointError) as told:
        load_strict(module, kept, source="a.pt")
    message = str(told.value)
    assert message.startswith("a.pt does not fit Sequential: ")
    assert "4 missing (0.bias, 1.bias, 2.bias, ...)" in message
    assert "2 unexpected (stranger.0, stranger.1)" in message
    assert "1 of another shape (0.weight (3, 2) instead of (2, 2))" in message
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
