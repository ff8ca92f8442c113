"""Norms, feed-forward layers and rotary tables by name or by `_target_`."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from argen.build import build
from argen.errors import UserError
from argen.layers.feed_forward import FEED_FORWARD, make_feed_forward
from argen.layers.norms import NORMS, make_norm
from argen.layers.rope import rope_table_2d
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

SPEC = CodeSpec("discrete", (Segment((4, 4), (64,)),))
SUBS = CodeSpec("discrete", (Segment((4, 4), (8, 8)),))


class ReluSquared(nn.Module):
    """A feed-forward layer of somebody's own."""

    def __init__(self, dim: int, hidden: int, *, dropout: float, power: int = 2) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim, bias=False)
        self.dropout, self.power = nn.Dropout(dropout), power

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(torch.relu(self.up(x)) ** self.power))


def half_turned(spec: CodeSpec, head_dim: int, *, base: float) -> Tensor:
    """Rotary rows of somebody's own: half the angles stay zero."""
    table = rope_table_2d(spec.grid, head_dim, base=base).clone()
    table[:, ::2] = torch.tensor([1.0, 0.0])
    return table


def too_short(spec: CodeSpec, head_dim: int, *, base: float) -> Tensor:
    return half_turned(spec, head_dim, base=base)[:-1]


@pytest.fixture(autouse=True)
def module_of_ones_own(monkeypatch):
    module = ModuleType("own_layers")
    module.ReluSquared, module.half_turned = ReluSquared, half_turned
    module.too_short = too_short
    monkeypatch.setitem(sys.modules, "own_layers", module)


def own(name, **options):
    return {"_target_": name, "_partial_": True, **options}


OPTIONS = {
    "norm": own("torch.nn.RMSNorm", eps=1e-3),
    "ffn": own("own_layers.ReluSquared", power=3),
    "rope": own("own_layers.half_turned"),
    "qk_norm": own("torch.nn.LayerNorm", elementwise_affine=False),
}


@pytest.mark.parametrize(
    ("name", "spec"),
    [("tiny_gpt", SPEC), ("tiny_ibq", SPEC), ("tiny_open_magvit2", SUBS), ("tiny_nar", SPEC)],
)
def test_parts_of_ones_own_in_every_block(name, spec):
    options = {k: v for k, v in OPTIONS.items() if name != "tiny_nar" or k != "rope"}
    torch.manual_seed(0)
    model = build({**for_codes(preset("generator", name), spec), **options}, trust=True).train()
    for block in model.blocks:
        assert isinstance(block.attention_norm, nn.RMSNorm)
        assert block.attention_norm.eps == 1e-3
        assert isinstance(block.ffn, ReluSquared)
        assert block.ffn.power == 3
        assert isinstance(block.attention.q_norm, nn.LayerNorm)
    assert len({id(block.ffn) for block in model.blocks}) == len(model.blocks)
    assert model.config["ffn"] == options["ffn"]  # what is saved is the description
    shape = (2, 16, 2) if spec is SUBS else (2, 16)
    codes = torch.randint(8, shape)
    model(codes, torch.tensor([0, 1])).loss.backward()
    model.eval()
    with torch.no_grad():
        cond = model.conditioner(torch.tensor([0, 1]))
        state, wanted = model.start(cond), model.score(codes, cond)
        for group in model.plan.groups:
            found = model.predict(state)
            torch.testing.assert_close(found, wanted[:, list(group)], rtol=1e-4, atol=1e-4)
            model.commit(state, codes[:, list(group)])


def test_strangers_models_bring_no_code():
    config = {**for_codes(preset("generator", "tiny_gpt"), SPEC), "ffn": OPTIONS["ffn"]}
    with pytest.raises(UserError, match="trust=true"):
        build(config, trust=False)


def test_a_rotary_table_of_another_length_is_refused():
    config = for_codes(preset("generator", "tiny_gpt"), SPEC)
    with pytest.raises(UserError, match="one row a code"):
        build({**config, "rope": own("own_layers.too_short")}, trust=True)
    with pytest.raises(UserError, match="Unknown rope '3d'; use 2d, 1d"):
        build({**config, "rope": "3d"})


@pytest.mark.parametrize("name", sorted(NORMS))
def test_named_norms(name):
    norm = make_norm(name, 8, 1e-6)
    assert bool(list(norm.parameters())) == (not name.endswith("plain"))
    x = 3 + torch.randn(5, 8)
    centre = x - x.mean(-1, keepdim=True) if name.startswith("layer") else x
    wanted = centre / centre.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(norm(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(FEED_FORWARD))
def test_named_feed_forward_layers(name):
    layer = make_feed_forward(name, 8, 12)
    assert layer(torch.randn(2, 3, 8)).shape == (2, 3, 8)
    assert any(key.endswith("bias") for key in layer.state_dict()) == (name != "swiglu")


def test_unknown_names_are_told_what_there_is():
    with pytest.raises(UserError, match=r"use rms, rms_plain, layer, layer_plain.*Did you mean"):
        make_norm("rmss", 8, 1e-5)
    with pytest.raises(UserError, match=r"use swiglu, geglu, gelu, gelu_tanh.*Did you mean"):
        make_feed_forward("swigl", 8, 8)
    with pytest.raises(UserError, match="no inner dropout"):
        make_feed_forward("geglu", 8, 8, inner_dropout=0.1)
