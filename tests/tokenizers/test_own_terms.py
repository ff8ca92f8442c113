"""A loss of one's own is one file and one YAML: terms, adversarial forms and schedules by path."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
import yaml
from torch import nn

from argen.build import build
from argen.objectives.objective import Objective
from argen.tokenizers.base import TokenizerOutput

CODE = '''
import torch
from torch import nn


class Edges(nn.Module):
    """Mean absolute difference of horizontal slopes."""

    def forward(self, images, target):
        return (images - target).diff(dim=-1).abs().mean()


class Small(nn.Module):
    """Mean square of the latents."""

    def forward(self, output, images):
        return output.latents.square().mean()


class Squares:
    """The loss of LSGAN, either side."""

    def __init__(self, label):
        self.label = label

    def __call__(self, *logits):
        if len(logits) == 1:
            return (logits[0] - self.label).square().mean()
        real, fake = logits
        return (real - self.label).square().mean() + fake.square().mean()


class Halving:
    """1, 1/2, 1/4, ... every so many steps."""

    def __init__(self, every):
        self.every = every

    def __call__(self, step):
        return 0.5 ** (step // self.every)
'''

YAML = """
_target_: argen.objectives.objective.Objective
weights:
  l1: 0.0
  edges: {_target_: somebodys_losses.Halving, every: 10}
  small: 3.0
  adversarial: 0.5
image_terms:
  edges: {_target_: somebodys_losses.Edges}
latent_terms:
  small: {_target_: somebodys_losses.Small}
discriminator: {_target_: torch.nn.Conv2d, in_channels: 3, out_channels: 1, kernel_size: 1}
discriminator_form: {_target_: somebodys_losses.Squares, label: 2.0}
generator_form: {_target_: somebodys_losses.Squares, label: 2.0}
"""


@pytest.fixture
def objective():
    module = ModuleType("somebodys_losses")
    exec(CODE, module.__dict__)
    sys.modules["somebodys_losses"] = module
    torch.manual_seed(0)
    yield build(yaml.safe_load(YAML), trust=True)
    del sys.modules["somebodys_losses"]


@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (25, 0.25)])
def test_every_kind_of_term(objective, step, share):
    assert isinstance(objective, Objective)
    images, made = torch.rand(2, 2, 3, 4, 5) * 2 - 1
    made.requires_grad_()
    latents = torch.randn(2, 7)
    output = TokenizerOutput(images=made, latents=latents)
    total, terms = objective.tokenizer_loss(images, output, step=step)
    assert set(terms) == {"l1", "l2", "edges", "small", "adversarial", "adaptive_weight"}
    slopes = (made - images)[..., 1:] - (made - images)[..., :-1]
    real, fake = objective.discriminator(images), objective.discriminator(made)
    expected = share * slopes.abs().mean() + 3 * latents.square().mean()
    torch.testing.assert_close(total, expected + 0.5 * (fake - 2).square().mean())
    loss, _ = objective.discriminator_loss(images, made, step=step)
    torch.testing.assert_close(loss, (real - 2).square().mean() + fake.square().mean())
    loss.backward()
    assert objective.discriminator.weight.grad.abs().sum() > 0
    assert made.grad is None


def test_a_term_that_ships_can_be_replaced():
    config = {
        "_target_": "argen.objectives.objective.Objective",
        "weights": {"l2": 1.0},
        "image_terms": {"l2": {"_target_": "argen.objectives.image_terms.L2", "unit_range": True}},
    }
    images, made = torch.rand(2, 2, 3, 4, 4) * 2 - 1
    total, _ = build(config, trust=True).tokenizer_loss(
        images, TokenizerOutput(images=made), step=0
    )
    torch.testing.assert_close(total, nn.functional.mse_loss((made + 1) / 2, (images + 1) / 2))
