"""Weights as drawing wants them: packed, in bfloat16, and int8."""

from __future__ import annotations

import copy

import pytest
import torch
from shipped import condition, make_generator, make_tokenizer, partner, random_codes, tiny
from torch import nn

from argen.errors import UserError
from argen.layers.attention import QVBiasLinear
from argen.layers.cpu import packed
from argen.layers.cpu.int8 import Int8Linear
from argen.layers.cpu.packed import PackedLinear, pack_weights, unpack_weights
from argen.layers.inference_precision import to_precision
from argen.layers.noise import SeededNoise

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False, "qv"])
def test_packed_weights_multiply_as_before(bias: bool | str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = QVBiasLinear(96, 20, 10, 10) if bias == "qv" else nn.Linear(96, 40, bias=bool(bias))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    network = nn.Sequential(copy.deepcopy(plain)).to(dtype)
    plain.to(dtype)
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.1}
    )
    assert pack_weights(network) == 1
    packed = network[0]
    assert isinstance(packed, PackedLinear)
    shared = copy.deepcopy(network)
    for shape in ((1, 96), (3, 96), (2, 5, 96), (70, 96), (0, 96), (3, 0, 96)):
        x = torch.randn(shape).to(dtype)
        with torch.inference_mode():
            expected = plain(x)
            for found in (network(x), shared(x)):
                assert found.shape == expected.shape
                torch.testing.assert_close(found, expected, **tolerance)
            columns = torch.randn(96, 7).to(dtype).t()  # rows that do not lie side by side
            torch.testing.assert_close(network(columns), plain(columns), **tolerance)
    kept = {key.removeprefix("0."): value for key, value in network.state_dict().items()}
    assert kept.keys() == plain.state_dict().keys()
    unpack_weights(network)
    unpack_weights(shared)
    assert shared[0] is not network[0]
    assert type(network[0]) is type(plain)
    for found in (kept, network[0].state_dict(), shared[0].state_dict()):
        assert all(torch.equal(found[key], value) for key, value in plain.state_dict().items())
    assert network(torch.randn(1, 96).to(dtype)).requires_grad


@needs_onednn
def test_shared_weights_and_quantizers_are_left_alone() -> None:
    tied = nn.ModuleDict({"table": nn.Embedding(5, 4), "out": nn.Linear(4, 5, bias=False)})
    tied["out"].weight = tied["table"].weight
    assert pack_weights(tied) == 0
    tokenizer = make_tokenizer("tiny_simvq")
    pack_weights(tokenizer)
    assert not any(isinstance(m, PackedLinear) for m in tokenizer.quantizer.modules())


@needs_onednn
def test_packed_weights_in_compiled_code() -> None:
    network = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    x = torch.randn(3, 8)
    with torch.inference_mode():
        expected = network(x)
        pack_weights(network)
        found = torch.compile(network)(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_few_float32_rows_stay_with_intels_own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    for intel, few, many in ((True, 0, 1), (False, 1, 1)):
        monkeypatch.setattr(packed, "_intel", lambda intel=intel: intel)
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
        counts = [pack_weights(nn.Sequential(nn.Linear(8, 8)), rows=r) for r in (2, 64, None)]
        assert counts == [few, many, many]


@pytest.mark.parametrize("name", tiny("tokenizer"))
def test_every_tokenizer_decodes_as_before(name: str) -> None:
    tokenizer = make_tokenizer(name).eval()
    codes = random_codes(tokenizer.spec, 2)
    with torch.inference_mode():
        images = tokenizer.decode(codes)
        given = images.clamp(-1, 1)
        again = tokenizer.encode(given)
        to_precision(tokenizer, "float32")
        torch.testing.assert_close(tokenizer.decode(codes), images, rtol=1e-3, atol=1e-3)
        found = tokenizer.encode(given)
    if again.is_floating_point():
        torch.testing.assert_close(found, again, rtol=1e-3, atol=1e-3)
    else:
        assert (found == again).float().mean() > 0.95  # a tie in the last bits may fall otherwise


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


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
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
    assert error < (1e-4 if precision == "float32" else 0.08)


@pytest.mark.parametrize("name", tiny("tokenizer"))
def test_every_tokenizer_decodes_in_bfloat16(name: str) -> None:
    tokenizer = make_tokenizer(name).eval()
    codes = random_codes(tokenizer.spec, 2)
    with torch.inference_mode():
        expected = tokenizer.decode(codes)
        to_precision(tokenizer, "bfloat16")
        found = tokenizer.decode(codes).float()
    assert (found - expected).norm() / expected.norm() < 0.1


def test_unknown_precision() -> None:
    with pytest.raises(UserError, match="float32, bfloat16, int8"):
        to_precision(nn.Linear(1, 1), "half")
