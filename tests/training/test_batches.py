"""A paper's batch and epochs on the devices that there are."""

from __future__ import annotations

import pytest

from argen.errors import UserError
from argen.training.batches import fit_settings, planned, processes

FIT = {"steps": 5000, "batch_size": 16, "epochs": None, "global_batch": None}
IMAGENET = 1_281_167


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def plan(trainer=None, samples=0, **fit):
    return planned({**FIT, **fit}, samples=samples, trainer=trainer or {})


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({}, 1),
        ({"devices": 4}, 4),
        ({"devices": "4"}, 4),
        ({"devices": [0, 2, 3]}, 3),
        ({"devices": "0,2", "num_nodes": 3}, 6),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
        ({"devices": -1, "accelerator": "cpu", "num_nodes": 2}, 2),
        ({"devices": 8, "num_nodes": 4}, 32),
    ],
)
def test_one_process_a_device(trainer, expected):
    assert processes(trainer) == expected


def test_processes_that_were_started_count(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert processes({"devices": 1}) == 6


def test_without_them_nothing_changes():
    assert plan() == FIT


@pytest.mark.parametrize(
    ("devices", "accumulate", "each"), [(1, 1, 768), (8, 1, 96), (8, 4, 24), (64, 1, 12)]
)
def test_the_global_batch_is_shared_out(devices, accumulate, each):
    trainer = {"devices": devices, "accumulate_grad_batches": accumulate}
    found = plan(trainer, samples=IMAGENET, global_batch=768, epochs=300)
    assert found["batch_size"] == each
    assert found["steps"] == 300 * 1668 == 500_400  # whatever the devices


def test_what_cannot_be_shared_out_is_refused():
    with pytest.raises(UserError, match=r"over 10 batches .*5 processes.*fit.global_batch=770"):
        plan({"devices": 5, "accumulate_grad_batches": 2}, global_batch=768)
    with pytest.raises(UserError, match=r"fit.global_batch=8\."):
        plan({"devices": 8}, global_batch=3)
    with pytest.raises(UserError, match="do not fill one batch of 768"):
        plan(samples=700, global_batch=768, epochs=1)
    with pytest.raises(UserError, match=r"fit.epochs=0 must be positive"):
        plan(samples=700, epochs=0)


def test_epochs_are_whole_passes():
    assert plan(samples=100, epochs=3)["steps"] == 3 * 6
    assert plan({"devices": 2}, samples=100, epochs=3)["steps"] == 3 * 3
    assert plan(samples=100, epochs=0.5)["steps"] == 3


def test_samples_are_counted_for_epochs_alone():
    class Uncountable:
        def __len__(self):
            raise AssertionError("reads every shard")

    stage = {"fit": FIT, "trainer": {}, "logger": {}}
    assert fit_settings(stage, Uncountable()).steps == 5000
    with pytest.raises(AssertionError, match="every shard"):
        fit_settings({**stage, "fit": {**FIT, "epochs": 1}}, Uncountable())
