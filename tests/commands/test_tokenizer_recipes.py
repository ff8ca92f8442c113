"""The recipes of configs/experiment/tokenizer train, shortened, on the bundled images."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from argen import cli
from argen.runtime.files import read_json

# Half the side, and an eighth of the steps or so: seconds each.
SHORT = ["data.image_size=16", "tokenizer.image_size=16", "trainer=cpu", "fit.ema=0.9"]
SHORT += ["optim.warmup=10", "fit.save_every=1000", "trainer.log_every_n_steps=10"]
# Steps, and the PSNR in dB that held-out images must reach (found: 1.2 dB above the bar or more;
# the ids of TiTok learn slowly, 0.6). One colour for all images gives 10.8 dB, the mean of the
# training images 11.2.
REACHED = {
    "tiny_vq": (120, 13.0),
    "tiny_gumbel": (120, 12.3),
    "tiny_fsq": (120, 13.5),
    "tiny_lfq": (120, 14.5),
    "tiny_bsq": (120, 13.3),
    "tiny_ibq": (120, 12.3),
    "tiny_binary_ae": (120, 13.0),
    "tiny_wetok": (120, 14.5),
    "tiny_kl": (120, 13.3),
    "tiny_multiscale": (120, 12.5, "tokenizer.quantizer.scales=[1,2,4,8]"),
    "tiny_titok": (400, 10.9),
    "tiny_titok_vae": (400, 12.0),
    "tiny_one_d_piece": (400, 10.9),
    "tiny_maskgit_vqgan": (120, 11.6),
}


def train(monkeypatch: pytest.MonkeyPatch, place: Path, *words: str) -> None:
    """Run `argen train WORDS` in this process, in a directory."""
    GlobalHydra.instance().clear()
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["argen", "train", *words])
    cli.main()


def losses(run: Path) -> list[float]:
    """Return the logged training loss, in order."""
    with (run / "tokenizer" / "logs" / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def psnr(run: Path) -> float:
    return float(read_json(run / "tokenizer" / "metrics.json")["psnr_heldout_db"])


@pytest.mark.slow
@pytest.mark.parametrize("name", REACHED)
def test_a_recipe_learns(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps, wanted, *more = REACHED[name]
    length = [f"fit.steps={steps}", f"fit.val_every={steps}"]
    train(monkeypatch, tmp_path, f"experiment=tokenizer/{name}", *SHORT, *length, *more)
    run = tmp_path / "outputs" / name
    history = losses(run)
    assert all(math.isfinite(value) for value in history)
    assert sum(history[-3:]) < 0.9 * sum(history[:3]), history
    assert psnr(run) > wanted
