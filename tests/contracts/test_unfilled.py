"""Modules built without random weights are whole once their weights are loaded."""

from __future__ import annotations

import pytest
import torch
from shipped import make_generator, make_tokenizer, partner, tiny
from torch import nn

from argen.build import build
from argen.runtime.no_init import no_init_weights


def check(made: nn.Module) -> None:
    with no_init_weights():
        empty = build(made.config)
    empty.load_state_dict(made.state_dict())
    # Whatever is in no file was computed, not drawn.
    for (name, own), (_, other) in zip(empty.named_buffers(), made.named_buffers()):
        assert torch.equal(own, other), name
    stored = set(made.state_dict())
    assert {name for name, _ in made.named_parameters(remove_duplicate=False)} <= stored


@pytest.mark.parametrize("name", tiny("tokenizer"))
def test_a_tokenizer(name: str) -> None:
    check(make_tokenizer(name))


@pytest.mark.parametrize("name", tiny("generator"))
def test_a_generator(name: str) -> None:
    check(make_generator(name, partner(name)))


def test_buffers_are_filled_and_parameters_are_not() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with no_init_weights():
        for layer in (nn.Linear(3, 3), nn.Embedding(3, 3), nn.Conv2d(3, 3, 1)):
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.trunc_normal_(layer.weight)
            nn.init.xavier_uniform_(layer.weight)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.empty(100).normal_().std() > 0.5
