"""Calling a generator gives its training loss."""

from __future__ import annotations

import pytest
import torch

from argen.build import build
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

IDS = CodeSpec("discrete", (Segment((4, 4), (64,)),))
SUBS = CodeSpec("discrete", (Segment((4, 4), (8, 8)),))
BITS = CodeSpec("binary", (Segment((4, 4), bits=8, dim=8),))
VECTORS = CodeSpec("continuous", (Segment((4, 4), dim=4),))
CASES = [
    *[(name, IDS) for name in ("tiny_gpt", "tiny_ibq", "tiny_rar", "tiny_net2net", "tiny_nar")],
    *[(name, IDS) for name in ("tiny_maskgit", "tiny_maskgit_uvit")],
    *[(name, VECTORS) for name in ("tiny_mar", "tiny_xar")],
    *[("tiny_open_magvit2", SUBS), ("tiny_elm", BITS)],
]


@pytest.mark.parametrize(("name", "spec"), CASES, ids=[case[0] for case in CASES])
def test_a_call_is_the_loss(name, spec):
    torch.manual_seed(0)
    model = build(for_codes(preset("generator", name), spec)).train()
    shape = spec.code_shape(3)
    high = 2 if spec is BITS else 8
    codes = torch.randn(shape) if spec is VECTORS else torch.randint(high, shape)
    label, drop_B = torch.tensor([0, 3, 9]), torch.tensor([False, True, False])
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    torch.manual_seed(1)
    wanted = model.loss(codes, model.conditioner(label, drop_B=drop_B))
    assert not seen
    torch.manual_seed(1)
    found = model(codes, label, drop_B=drop_B)
    torch.manual_seed(1)
    given = model(codes, model.conditioner(label, drop_B=drop_B))
    assert len(seen) == 2
    assert torch.equal(found.loss, wanted.loss)
    assert torch.equal(given.loss, wanted.loss)
