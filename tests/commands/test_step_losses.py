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


@pytest.mark.parametrize("ranks", [TWO, FSDP2], ids=["ddp", "fsdp2"])
def test_two_ranks_have_the_losses_of_one(tmp_path: Path, ranks: list[str]) -> None:
    words = ["train", "name=two", *SAME, "fit.steps=4", "trainer.log_every_n_steps=1"]
    found = []
    for place, more in (("one", ["fit.batch_size=8"]), ("both", [*ranks, "fit.batch_size=4"])):
        (tmp_path / place).mkdir()
        done = command(*words, *more, cwd=tmp_path / place)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(losses(tmp_path / place / "outputs" / "two"))
    assert found[0].keys() == found[1].keys()
    for name, values in found[0].items():
        assert len(values) == STEPS
        assert found[1][name] == pytest.approx(values, rel=1e-5), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as there:
        GOLDEN.write_text(json.dumps(record(Path(there)), indent=1) + "\n")
