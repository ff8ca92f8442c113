"""The losses of the first steps: as they were recorded, and the same however they are shared out.

`python tests/commands/test_step_losses.py` records them anew, for a change meant to move them.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

from runs import TINY, command
from test_ranks import SAME, TWO

GOLDEN = Path(__file__).parents[1] / "golden" / "training_losses.json"
STEPS = 4
PINNED = [
    "train", *TINY, "name=pinned", f"fit.steps={STEPS}", "trainer.precision=32-true",
    "trainer.log_every_n_steps=1", "objective=tiny", "objective.discriminator_start=1",
    "objective.adversarial_start=2",
]  # fmt: skip
FSDP2 = ["trainer=fsdp2", *TWO[1:]]


def losses(run: Path) -> dict[str, list[float]]:
    """Return the losses of each stage's steps, means over all ranks, as the log has them."""
    found = {}
    for stage in ("tokenizer", "generator"):
        with (run / stage / "logs" / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
        found[stage] = [float(row["train/loss"]) for row in rows]
        for name in ("train/discriminator", "train/adversarial"):
            more = [float(row[name]) for row in rows if row.get(name)]
            if more:
                found[f"{stage} {name}"] = more
    return found


def record(place: Path) -> dict[str, list[float]]:
    done = command(*PINNED, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return losses(place / "outputs" / "pinned")


def test_losses_are_those_that_were_recorded(tmp_path: Path) -> None:
    expected, found = json.loads(GOLDEN.read_text()), record(tmp_path)
    assert found.keys() == expected.keys()
    assert len(found["generator"]) == STEPS
    for name, values in expected.items():
        # Rounding differs between processors, and Adam's first steps scale it up.
        assert found[name] == pytest.approx(values, rel=2e-4), name


LOGGED = ["train", "name=two", *SAME, f"fit.steps={STEPS}", "trainer.log_every_n_steps=1"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that two ranks are compared with."""
    place = tmp_path_factory.mktemp("alone")
    done = command(*LOGGED, "fit.batch_size=8", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "outputs" / "two"


@pytest.mark.parametrize("ranks", [TWO, FSDP2], ids=["ddp", "fsdp2"])
def test_two_ranks_have_the_losses_and_weights_of_one(
    alone: Path, tmp_path: Path, ranks: list[str]
) -> None:
    done = command(*LOGGED, *ranks, "fit.batch_size=4", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("samples          ") == 1, "one rank reports"
    both = tmp_path / "outputs" / "two"
    expected, found = losses(alone), losses(both)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        assert len(values) == STEPS
        assert found[name] == pytest.approx(values, rel=1e-5), name
    for part in ("tokenizer", "generator"):
        one, two = (load_file(run / "model" / f"{part}.safetensors") for run in (alone, both))
        assert one.keys() == two.keys()
        for key, value in one.items():
            if value.is_floating_point():
                torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5, msg=key)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as there:
        GOLDEN.write_text(json.dumps(record(Path(there)), indent=1) + "\n")
