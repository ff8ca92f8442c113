"""The log of a run: images and tokens a second, and the share of the device's peak."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from test_accumulation import Items, generator_task

from argen.runtime.flops import count_flops
from argen.training import fit as fitting
from argen.training.fit import FitSettings, fit
from argen.training.stream import Stream
from argen.training.throughput import training_flops


def logged(directory: Path) -> list[dict[str, str]]:
    settings = FitSettings(
        steps=3,
        batch_size=4,
        trainer={"accelerator": "cpu", "precision": "32-true", "log_every_n_steps": 1},
    )
    fit(
        generator_task(),
        Stream(Items(), Items(), steps=3, batch_size=4),
        settings,
        title="tiny",
        directory=directory,
    )
    with (directory / "logs" / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row.get("images_per_second")]


def test_rates_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = logged(tmp_path / "plain")
    assert len(rows) == 3
    for row in rows:
        images, tokens = float(row["images_per_second"]), float(row["tokens_per_second"])
        assert images > 0
        assert tokens == pytest.approx(16 * images)
    assert "mfu" not in rows[0]  # this processor's peak is in no table

    monkeypatch.setattr(fitting, "device_peak", lambda device, precision: 1e12)
    flops = training_flops(generator_task().network, Items()[0], torch.device("cpu"))
    for row in logged(tmp_path / "known"):
        share = float(row["images_per_second"]) * flops / 1e12
        assert float(row["mfu"]) == pytest.approx(share, rel=1e-4)


def test_flops_are_those_of_one_sample_and_draw_nothing() -> None:
    task, items = generator_task(), Items()
    state = torch.get_rng_state()
    found = training_flops(task.network, items[0], torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in task.network.parameters())
    batch = torch.utils.data.default_collate([items[i] for i in range(6)])
    whole = count_flops(lambda: task.loss(batch, None).loss.backward())
    assert found == pytest.approx(whole / 6)
