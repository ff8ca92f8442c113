"""Protocols: what ships, what their hash covers, what they refuse."""

from dataclasses import replace

import pytest
import torch

from argen.errors import UserError
from argen.evaluation.protocol import Protocol, evenly_spread, shipped_protocols
from argen.pretrained.features import EfficientNetLite0Features


@pytest.mark.parametrize("name", sorted(shipped_protocols()))
def test_shipped_protocols_load_and_carry_their_file_name(name):
    protocol = Protocol.load(name)
    assert protocol.name == name
    assert Protocol.from_dict(protocol.to_dict()) == protocol


def test_both_first_protocols_ship():
    assert {"fd_lite", "fid"} <= set(shipped_protocols())
    assert Protocol.load("fd_lite").sha256 == EfficientNetLite0Features().sha256
    assert "not FID" in Protocol.load("fd_lite").title


def test_hash_changes_with_the_score_and_not_with_the_prose():
    protocol = Protocol.load("fd_lite")
    assert replace(protocol, notes="x", title="y").hash() == protocol.hash()
    changed = {
        replace(protocol, size=224).hash(),
        replace(protocol, samples=2000).hash(),
        replace(protocol, rounding="truncate").hash(),
        replace(protocol, metrics=("frechet",)).hash(),
        protocol.hash(),
    }
    assert len(changed) == 5


def test_names_of_scores():
    fid = Protocol.load("fid")
    assert fid.score_name(50_000, comparable=True, quick=False) == "FID"
    assert fid.score_name(5_000, comparable=False, quick=True) == "FID-5k (quick)"
    assert fid.score_name(20_000, comparable=False, quick=False) == "FID-20k (not comparable)"


def test_too_few_samples_need_quick():
    fid = Protocol.load("fid")
    fid.check_count(10_000, quick=False)
    fid.check_count(5_000, quick=True)
    with pytest.raises(UserError, match=r"at least 10000.*quick=true"):
        fid.check_count(9_999, quick=False)
    with pytest.raises(UserError, match="at least 2"):
        fid.check_count(1, quick=True)


def test_mistakes_are_named(tmp_path):
    values = Protocol.load("fid").to_dict()
    with pytest.raises(UserError, match="Did you mean 'samples'"):
        Protocol.from_dict({**values, "sample": 5})
    with pytest.raises(UserError, match="lacks least"):
        Protocol.from_dict({k: v for k, v in values.items() if k != "least"})
    with pytest.raises(UserError, match="unknown metric 'fd'"):
        Protocol.from_dict({**values, "metrics": ["fd"]})
    with pytest.raises(UserError, match="Did you mean 'fd_lite'"):
        Protocol.load("fdlite")
    (tmp_path / "p.yaml").write_text("{")
    with pytest.raises(UserError, match="not readable YAML"):
        Protocol.load(tmp_path / "p.yaml")


def test_even_labels():
    assert evenly_spread(torch.tensor([0, 1, 2, 0]), 3)
    assert not evenly_spread(torch.tensor([0, 0, 1]), 3)
    assert not evenly_spread(torch.tensor([0, 0, 0, 1, 2]), 3)
