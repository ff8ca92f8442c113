"""Weights as drawing wants them: bfloat16 with products for few rows, and int8."""

from __future__ import annotations

import copy

import pytest
import torch
from shipped import condition, make_generator, partner, random_codes, tiny
from torch import nn

from argen.errors import UserError
from argen.layers.drawing import to_precision
from argen.layers.few_rows import FEW, FewRowsLinear, for_few_rows
from argen.layers.int8 import Int8Linear
from argen.layers.noise import SeededNoise


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, FEW, FEW + 1])
def test_both_products_are_the_same(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(96, 40, bias=bias).bfloat16()
    few = nn.Sequential(copy.deepcopy(plain))
    for_few_rows(few, on=True)
    assert type(few[0]) is FewRowsLinear
    x = torch.randn(rows, 96).bfloat16()
    with torch.inference_mode():
        expected, found = plain(x), few(x)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
        assert found.is_contiguous()
        assert few(x[:, None]).shape == (rows, 1, 40)
    assert few(x).requires_grad  # a training step takes the ordinary product
    for_few_rows(few, on=False)
    assert type(few[0]) is nn.Linear
    assert few.state_dict().keys() == nn.Sequential(plain).state_dict().keys()


@pytest.mark.parametrize("bias", [True, False])
def test_rounded_weights_multiply_nearly_as_before(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(96, 40, bias=bias)
    with torch.no_grad():
        plain.weight[3] *= 100  # one large column has its own scale
    rounded, x = Int8Linear(plain), torch.randn(5, 7, 96)
    with torch.inference_mode():
        expected, found = plain(x), rounded(x)
    assert found.shape == expected.shape
    for column in (0, 3):
        error = (found - expected)[..., column].norm() / expected[..., column].norm()
        assert 0 < error < 0.02


def scored(generator, codes):
    """Return the parameters of a law or, where they are a function, the loss."""
    cond = condition(generator, 2)
    params = generator.score(codes, cond)
    if isinstance(params, torch.Tensor):
        return params.float()
    return generator.loss(codes, cond, noise=SeededNoise([0, 1])).loss.float()


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", tiny("generator"))
def test_every_generator_scores_nearly_as_before(name: str, precision: str) -> None:
    generator = make_generator(name, partner(name)).eval()
    codes = random_codes(generator.spec, 2)
    with torch.inference_mode():
        expected = scored(generator, codes)
        to_precision(generator, precision)
        if generator.spec.kind == "continuous":
            codes = codes.to(next(generator.parameters()).dtype)
        found = scored(generator, codes)
    finite = torch.isfinite(expected)
    assert torch.equal(torch.isfinite(found), finite)
    error = (found - expected)[finite].norm() / expected[finite].norm()
    assert error < 0.08


def test_unknown_precision() -> None:
    with pytest.raises(UserError, match="float32, bfloat16, int8"):
        to_precision(nn.Linear(1, 1), "half")
