"""Several batches a step give the weights of one large batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from argen.build import build
from argen.data.draws import as_draw
from argen.errors import UserError
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment
from argen.training.code_tasks import GeneratorTask
from argen.training.fit import FitSettings, fit
from argen.training.optim import Optim
from argen.training.stream import Stream
from argen.training.task import Task
from argen.training.tokenizer_task import TokenizerTask

SPEC = CodeSpec("discrete", (Segment((4, 4), (16,)),))
STEPS = 3


class Items(Dataset):
    """Images and codes that differ."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, item):
        index = as_draw(item).index
        draws = torch.Generator().manual_seed(index)
        return {
            "image": torch.rand(3, 16, 16, generator=draws) * 2 - 1,
            "codes": torch.randint(16, (16,), generator=draws),
            "label": index % 3,
        }


def tokenizer_task(objective: str) -> TokenizerTask:
    torch.manual_seed(0)
    config = preset("objective", objective)
    if objective == "tiny":
        # What depends on the batch as a whole is no mean of its parts: scales, norms, entropies.
        config["discriminator"] = {
            "_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 1, "kernel_size": 3,
        }  # fmt: skip
        config |= {"adaptive": False, "lecam": None, "lecam_weight": 0.0}
        config |= {"discriminator_start": 0, "adversarial_start": 0}
        config["weights"] |= {"entropy": 0.0, "sample_entropy": 0.0, "batch_entropy": 0.0}
    return TokenizerTask(
        build(preset("tokenizer", "tiny_vq"), image_size=16),
        objective=build(config, trust=True),
        optim=Optim(warmup=1, lr=1e-3, eps=1e-4),
        # Later steps drift apart: the adversarial gradient is small, and Adam scales noise up.
        steps=STEPS if objective == "reconstruction" else 1,
    )


def generator_task() -> GeneratorTask:
    torch.manual_seed(0)
    config = for_codes(preset("generator", "tiny_gpt"), SPEC, num_classes=3)
    config["conditioner"] |= {"drop_rate": 0.0}
    return GeneratorTask(build(config), optim=Optim(warmup=1, lr=1e-3, eps=1e-4), steps=STEPS)


def trained(task: Task, directory: Path, *, batch_size: int, accumulate: int) -> dict:
    settings = FitSettings(
        steps=task.steps,
        batch_size=batch_size,
        ema=0.0,
        val_every=2,
        trainer={
            "accelerator": "cpu",
            "precision": "32-true",
            "accumulate_grad_batches": accumulate,
        },
        logger={"kind": "none"},
    )
    stream = Stream(Items(), Items(), steps=task.steps, batch_size=batch_size)
    fit(task, stream, settings, title="tiny", directory=directory)
    assert task.global_step == task.steps
    return task.state_dict()


@pytest.mark.parametrize("name", ["reconstruction", "tiny", "generator"])
def test_two_small_batches_are_one_large(name: str, tmp_path: Path) -> None:
    def task() -> Task:
        return generator_task() if name == "generator" else tokenizer_task(name)

    before = task().state_dict()
    one = trained(task(), tmp_path / "one", batch_size=8, accumulate=1)
    two = trained(task(), tmp_path / "two", batch_size=4, accumulate=2)
    moved = 0.0
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=2e-5, msg=key)
        moved = max(moved, float((value.float() - before[key].float()).abs().max()))
    assert moved > 5e-4


def test_no_batches_a_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="accumulate_grad_batches=0"):
        trained(generator_task(), tmp_path, batch_size=4, accumulate=0)
