"""Activation checkpointing changes memory alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from argen.build import build
from argen.errors import UserError
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment
from argen.training.recompute import recompute_activations

SPEC = CodeSpec("discrete", (Segment((4, 4), (64,)),))


def test_losses_gradients_and_names_stay() -> None:
    torch.manual_seed(0)
    plain = build(for_codes(preset("generator", "tiny_gpt"), SPEC)).train()
    for output in plain.head.output_layers():  # a head of zeros would hide every gradient
        nn.init.normal_(output.weight, std=0.02)
    other = copy.deepcopy(plain)
    assert recompute_activations(other) == len(plain.blocks)
    calls = []
    other.blocks[0].ffn.register_forward_pre_hook(lambda *_: calls.append(1))
    codes = torch.randint(64, (2, 16))
    for model in (plain, other):
        torch.manual_seed(1)  # the same dropout
        model.loss(codes, model.conditioner(torch.tensor([0, 1]))).loss.backward()
    assert len(calls) == 2  # forward, and again in the backward pass
    assert other.state_dict().keys() == plain.state_dict().keys()
    for (name, a), b in zip(plain.named_parameters(), other.parameters()):
        assert torch.equal(a.grad, b.grad), name
    # A copy, as averaging makes one, recomputes its own blocks.
    copied = copy.deepcopy(other)
    assert copied.blocks[0] is not other.blocks[0]
    with torch.no_grad():
        assert torch.isfinite(copied.loss(codes, copied.conditioner(torch.tensor([0, 1]))).loss)


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="no blocks"):
        recompute_activations(nn.Linear(2, 2))
