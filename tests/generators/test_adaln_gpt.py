"""GPTs with adaptive norms: IBQ's, and the old arguments that became classes."""

from __future__ import annotations

import pytest
import torch

from argen.build import build
from argen.errors import UserError
from argen.generators.adaln_gpt import AdaLNGPT, AdaLNSubTokenGPT
from argen.moved import current_config
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

SPEC = CodeSpec("discrete", (Segment((4, 4), (64,)),))
BITS = CodeSpec("binary", (Segment((4, 4), bits=8, dim=8),))


def make(**options):
    torch.manual_seed(0)
    model = build(for_codes({**preset("generator", "tiny_ibq"), **options}, SPEC, num_classes=5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_cached_passes_give_what_teacher_forcing_gives(shared):
    model = make(shared_adaln=shared)
    assert (model.modulation is not None) == shared
    codes, cond = torch.randint(64, (3, 16)), model.conditioner(torch.tensor([0, 1, 4]))
    wanted, state = model.score(codes, cond), model.start(cond)
    assert state.modulations.kept is None
    for step in range(16):
        found = model.predict(state)
        torch.testing.assert_close(found[:, 0], wanted[:, step], rtol=1e-4, atol=1e-4)
        model.commit(state, codes[:, step : step + 1])
    # Two decodings do not share what they keep.
    other = model.conditioner(torch.tensor([2, 2, 2]))
    fresh = model.predict(model.start(other))
    torch.testing.assert_close(fresh, model.score(codes, other)[:, :1], rtol=1e-4, atol=1e-4)


def test_gates_and_modulations_start_as_they_are_told():
    torch.manual_seed(0)
    model = build(for_codes(preset("generator", "tiny_ibq"), SPEC), init_gate=0.0)
    weight = model.blocks[0].modulation.proj.weight.view(6, 64, 64)
    assert all(bool(weight[part].eq(0).all()) == (part in (2, 5)) for part in range(6))


@pytest.mark.parametrize(
    ("name", "spec", "adaln", "kind"),
    [
        ("tiny_gpt", SPEC, "block", AdaLNGPT),
        ("tiny_gpt", SPEC, "shared", AdaLNGPT),
        ("tiny_elm", BITS, "block", AdaLNSubTokenGPT),
    ],
)
def test_old_arguments_are_taken(name, spec, adaln, kind):
    plain = for_codes(preset("generator", name), spec)
    old = {**plain, "adaln": adaln, "adaln_init": 0.25, "adaln_gate_init": 0.125}
    with pytest.warns(DeprecationWarning, match=f"now .*{kind.__name__}"):
        model = build(old)
    assert type(model) is kind
    assert (model.shared_adaln, model.init_modulation, model.init_gate) == (
        adaln == "shared",
        0.25,
        0.125,
    )
    assert not {"adaln", "adaln_init", "adaln_gate_init"} & set(model.config)
    with pytest.warns(DeprecationWarning, match="no longer takes adaln"):
        assert current_config(old) == model.config
    torch.manual_seed(1)
    again = build(model.config)  # as the new configuration is written, without a warning
    assert again.state_dict().keys() == model.state_dict().keys()


def test_an_old_model_without_adaptive_norms_loads():
    old = for_codes(preset("generator", "tiny_gpt"), SPEC)
    with pytest.warns(DeprecationWarning, match="no longer takes adaln"):
        assert current_config({**old, "adaln": "none", "adaln_gate_init": 0.1}) == old
    with pytest.raises(UserError, match="use none, block or shared"):
        build({**old, "adaln": "some"})
