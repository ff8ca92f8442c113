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
from argen.runtime.presets import preset

# Half the side, and an eighth of the steps or so: seconds each.
SHORT = ["data.image_size=16", "tokenizer.image_size=16", "trainer=cpu", "fit.ema=0.9"]
SHORT += ["optim.warmup=10", "fit.save_every=1000"]
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


def learners() -> list[str]:
    """Return one recipe of each class of tokenizers, the first of each."""
    found: dict[str, str] = {}
    for name in REACHED:
        found.setdefault(preset("tokenizer", name)["_target_"], name)
    return list(found.values())


def history_of(name: str, steps: int, monkeypatch: pytest.MonkeyPatch, place: Path) -> list[float]:
    """Train a recipe for some steps; return its losses, all of them finite."""
    _, _, *more = REACHED[name]
    length = [f"fit.steps={steps}", f"fit.val_every={steps}"]
    length += [f"trainer.log_every_n_steps={min(10, steps)}"]
    train(monkeypatch, place, f"experiment=tokenizer/{name}", *SHORT, *length, *more)
    history = losses(place / "outputs" / name)
    assert history
    assert all(math.isfinite(value) for value in history)
    return history


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in learners() else pytest.mark.full) for n in REACHED],
)
def test_a_recipe_learns(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps, wanted, *_ = REACHED[name]
    history = history_of(name, steps, monkeypatch, tmp_path)
    assert sum(history[-3:]) < 0.9 * sum(history[:3]), history
    assert psnr(tmp_path / "outputs" / name) > wanted


@pytest.mark.parametrize("name", [name for name in REACHED if name not in learners()])
def test_a_recipe_takes_its_first_steps(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    history_of(name, 2, monkeypatch, tmp_path)
    assert 0 < psnr(tmp_path / "outputs" / name) < 40
