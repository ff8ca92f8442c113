"""Losses that are not finite: the step is skipped, and too many in a row end the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from argen.build import build
from argen.data.draws import as_draw
from argen.errors import UserError
from argen.generators.base import LossOutput
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment
from argen.training.code_tasks import GeneratorTask
from argen.training.finite import FiniteSteps
from argen.training.fit import FitSettings, fit
from argen.training.optim import Optim
from argen.training.stream import Stream
from argen.training.task import Task
from argen.training.tokenizer_task import TokenizerTask

SPEC = CodeSpec("discrete", (Segment((4, 4), (16,)),))


class Items(Dataset):
    """Eight images and codes, some of them poisoned."""

    def __init__(self, poisoned: set[int]) -> None:
        self.poisoned = poisoned

    def __len__(self) -> int:
        return 8

    def __getitem__(self, item: Any) -> dict[str, Any]:
        index = as_draw(item).index
        image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(index)) * 2 - 1
        if index in self.poisoned:
            image[0, 0, 0] = float("nan")
        return {"image": image, "codes": torch.arange(16) % 16, "label": index % 3}


def run(task: Task, poisoned: set[int], directory: Path, **options: Any) -> Stream:
    settings = FitSettings(
        steps=8,
        batch_size=2,
        ema=0.9,
        val_every=100,
        save_every=1,
        trainer={"accelerator": "cpu", "precision": "32-true"},
        logger={"kind": "none"},
        **options,
    )
    stream = Stream(Items(poisoned), Items(set()), steps=8, batch_size=2)
    fit(task, stream, settings, title="tiny", directory=directory)
    return stream


def tokenizer_task(objective: str) -> TokenizerTask:
    torch.manual_seed(0)
    return TokenizerTask(
        build(preset("tokenizer", "tiny_vq"), image_size=16),
        objective=build(preset("objective", objective), trust=True),
        optim=Optim(warmup=1),
        steps=8,
    )


def generator_task() -> GeneratorTask:
    torch.manual_seed(0)
    generator = build(for_codes(preset("generator", "tiny_gpt"), SPEC, num_classes=3))
    return GeneratorTask(generator, optim=Optim(warmup=1), steps=8)


def poisoned_steps(poisoned: set[int]) -> int:
    stream = Stream(Items(poisoned), Items(set()), steps=8, batch_size=2)
    return sum(bool(poisoned & set(stream.samples_of(step, None))) for step in range(8))


def finite(task: Task) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in task.network.parameters())


def test_a_tokenizer_skips_poisoned_images(tmp_path: Path) -> None:
    task = tokenizer_task("tiny")
    before = [p.clone() for p in task.network.parameters()]
    run(task, {3}, tmp_path)
    assert 0 < task.finite.skipped == poisoned_steps({3}) < 8
    assert finite(task)
    assert any(not torch.equal(a, b) for a, b in zip(before, task.network.parameters()))


def test_too_many_in_a_row_end_the_run_and_name_the_samples(tmp_path: Path) -> None:
    task = tokenizer_task("reconstruction")
    with pytest.raises(UserError) as error:
        run(task, set(range(8)), tmp_path, max_skipped=3)
    told = str(error.value)
    assert told.startswith("3 steps in a row")
    assert "rank 0" in told
    stream = Stream(Items(set()), Items(set()), steps=8, batch_size=2)
    assert str(stream.samples_of(2, None)) in told
    assert "is not finite" in told
    assert finite(task)


def test_a_generator_skips_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    task, calls = generator_task(), []
    loss = task.generator.loss

    def sometimes(*args: Any, **kwargs: Any) -> LossOutput:
        calls.append(1)
        output = loss(*args, **kwargs)
        bad = float("nan") if len(calls) in (3, 4) else 1.0
        return LossOutput(output.loss * bad, output.metrics, output.nll)

    task.generator.loss = sometimes
    run(task, set(), tmp_path)
    assert task.finite.skipped == 2
    assert finite(task)


def test_a_gradient_is_clipped_or_dropped() -> None:
    good, bad = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    good.grad, bad.grad = torch.full((3,), 2.0), torch.tensor([1.0, float("inf"), 0.0])
    watch = FiniteSteps(2)
    assert watch.accepts([good], 1.0)
    assert good.grad.norm() == pytest.approx(1.0, abs=1e-4)
    assert not watch.accepts([bad], 0.0)
    assert bad.grad is None


def test_gradients_are_clipped_by_norm_then_by_value() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    for clip, value, expected in ((0.0, 0.5, [0.5, -0.5, 0.1]), (1.0, 0.7, [0.6, -0.7, 0.02])):
        weight.grad = torch.tensor([3.0, -4.0, 0.1])
        assert FiniteSteps().accepts([weight], clip, value)
        torch.testing.assert_close(weight.grad, torch.tensor(expected), atol=1e-3, rtol=0)
