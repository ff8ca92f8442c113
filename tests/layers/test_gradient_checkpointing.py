"""Activation checkpointing changes memory alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from argen.build import build
from argen.errors import UserError
from argen.layers.conv import ResBlock
from argen.layers.gradient_checkpointing import enable_gradient_checkpointing
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

SPEC = CodeSpec("discrete", (Segment((4, 4), (64,)),))


def test_losses_gradients_and_names_stay() -> None:
    torch.manual_seed(0)
    plain = build(for_codes(preset("generator", "tiny_gpt"), SPEC)).train()
    for output in plain.head.output_layers():  # a head of zeros would hide every gradient
        nn.init.normal_(output.weight, std=0.02)
    other = copy.deepcopy(plain)
    assert enable_gradient_checkpointing(other) == len(plain.blocks)
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


class OwnBlock(nn.Module):
    """A block of somebody's own, with a block inside."""

    checkpointable = True

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(ResBlock(8, 8, norm_groups=4), nn.Dropout(0.5))
        self.runs = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return x + self.inner(x)


def test_a_block_of_ones_own_takes_part_by_declaring_it() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), OwnBlock(), OwnBlock()).train()
    other = copy.deepcopy(plain)
    assert enable_gradient_checkpointing(other) == 2  # outermost blocks, not those inside
    x = torch.randn(2, 3, 4, 4)
    for network in (plain, other):
        torch.manual_seed(1)
        network(x).square().sum().backward()
    assert [network[1].runs for network in (plain, other)] == [1, 2]
    for a, b in zip(plain.parameters(), other.parameters()):
        assert torch.equal(a.grad, b.grad)
    assert type(other[1]) is OwnBlock


def test_the_argument_of_mar_is_the_same_setting() -> None:
    spec = CodeSpec("continuous", (Segment((4, 4), dim=4),))
    config = for_codes(preset("generator", "tiny_mar"), spec)
    torch.manual_seed(0)
    plain = build(config).train()
    torch.manual_seed(0)
    other = build(config, gradient_checkpointing=True).train()
    calls: list[int] = []
    other.network.encoder_blocks[0].ffn.register_forward_pre_hook(lambda *_: calls.append(1))
    codes = torch.randn(2, 16, 4)
    for model in (plain, other):
        torch.manual_seed(1)
        model(codes, torch.tensor([0, 1])).loss.backward()
    assert len(calls) == 2
    for (name, a), b in zip(plain.named_parameters(), other.parameters()):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.equal(a.grad, b.grad), name


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="checkpointable = True"):
        enable_gradient_checkpointing(nn.Linear(2, 2))
