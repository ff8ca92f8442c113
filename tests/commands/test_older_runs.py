"""Models, codes and half-trained runs that argen 0.1 wrote are opened, and go on, as before.

`tests/golden/written_by_0_1` is a run of version 0.1, killed at step 4 of 8 of its generator;
`expected` is the model that it became.
"""

from __future__ import annotations

import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from runs import TINY, call

import argen
from argen.build import build, locate
from argen.moved import MOVED, current_path
from argen.runtime.checkpoint import read_weights

OLDER = Path(__file__).parents[1] / "golden" / "written_by_0_1"
RUN = [word for word in TINY if not word.startswith(("fit.", "samples."))]
RUN += ["objective=tiny", "logger=none", "samples.per_class=1"]
RUN += ["fit.steps=8", "fit.val_every=4", "fit.save_every=4", "fit.batch_size=8"]


def test_a_model_directory_opens_and_draws():
    pipe = argen.load(OLDER / "expected")
    samples = pipe("all", n=1, seed=3)
    assert samples.images.shape == (10, 3, 16, 16)
    assert torch.isfinite(samples.images).all()


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, monkeypatch, capsys):
    shutil.copytree(OLDER, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "expected")
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    status, out, err = call(monkeypatch, capsys, "train", "out=.", "name=run", *RUN)
    assert status == 0, out + err
    after = read_weights(tmp_path / "run" / "model" / "generator.safetensors")
    expected = read_weights(OLDER / "expected" / "generator.safetensors")
    assert after.keys() == expected.keys()
    for name, weight in expected.items():  # another processor rounds otherwise
        torch.testing.assert_close(after[name], weight, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("old", "new"), sorted(MOVED.items()))
def test_old_paths_lead_to_what_is_there(old, new):
    single = find_spec(new.rpartition(".")[0]).submodule_search_locations is None
    if single:  # one class or function of a module, not all of it
        with pytest.warns(DeprecationWarning, match=new):
            assert locate(old).__name__ == new.rpartition(".")[2]
    else:
        import_module(new)
        with pytest.warns(DeprecationWarning, match=f"is now {new}.Thing"):
            assert current_path(f"{old}.Thing") == f"{new}.Thing"


def test_an_old_target_is_built():
    old = "argen.tokenizers.discriminators.PatchDiscriminator"
    with pytest.warns(DeprecationWarning, match="objectives.discriminators.PatchDiscriminator"):
        made = build({"_target_": old, "channels": 8})
    assert type(made).__module__ == "argen.objectives.discriminators"
