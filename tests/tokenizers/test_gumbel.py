"""Codes drawn from a categorical distribution, and codebooks cut to the codes in use."""

import pytest
import torch
from torch.nn import functional as F

from argen.build import build
from argen.errors import UserError
from argen.layers.noise import SeededNoise
from argen.runtime.presets import preset
from argen.tokenizers.quantizers.gumbel import Gumbel
from argen.tokenizers.quantizers.subset import CodeSubset, Subset
from argen.tokenizers.quantizers.vq import VQ
from argen.tokenizers.schedules import Linear, apply_step


@pytest.fixture
def z():
    return torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def gumbel():
    torch.manual_seed(0)
    return Gumbel(11, 4)


def test_evaluation_takes_the_likeliest_code(gumbel, z):
    quantized = gumbel.eval()(z)
    assert torch.equal(quantized.ids, gumbel.logits(z).argmax(-1))
    assert torch.equal(quantized.z, gumbel.lookup(quantized.ids))
    assert torch.equal(gumbel.encode(z), quantized.ids)


def test_noise_draws_from_the_distribution(gumbel):
    z = torch.randn(1, 1, 1, 4).expand(4000, 1, 1, 4)
    ids = gumbel.eval().encode(z, noise=SeededNoise(range(4000)))
    drawn = torch.bincount(ids.flatten(), minlength=11) / 4000
    expected = torch.softmax(gumbel.logits(z[0]), -1).flatten()
    torch.testing.assert_close(drawn, expected, atol=0.03, rtol=0)
    assert torch.equal(ids, gumbel.encode(z, noise=SeededNoise(range(4000))))


def test_straight_through_gives_rows_with_the_mixtures_gradient(gumbel, z):
    noise = SeededNoise([0, 1])
    gumbel.train().temperature.fill_(0.7)
    hard = gumbel(z, noise=noise)
    torch.testing.assert_close(hard.z, gumbel.lookup(hard.ids))
    found = torch.autograd.grad(hard.z.square().sum(), gumbel.proj.weight)[0]
    gumbel.straight_through = False
    soft = gumbel(z, noise=noise)
    draws = noise.gumbel(torch.arange(15), (11,)).view(2, 3, 5, 11)
    mixture = torch.softmax((gumbel.logits(z) + draws) / 0.7, -1) @ gumbel.codebook.weight
    torch.testing.assert_close(soft.z, mixture)
    expected = torch.autograd.grad((soft.z * 2 * hard.z.detach()).sum(), gumbel.proj.weight)[0]
    torch.testing.assert_close(found, expected)


def test_divergence_from_the_uniform_distribution(gumbel, z):
    kl = gumbel.eval()(z).losses["kl"]
    probs = torch.softmax(gumbel.logits(z), -1)
    torch.testing.assert_close(
        kl, F.kl_div(torch.full_like(probs, 1 / 11).log(), probs, reduction="none").sum(-1).mean()
    )
    gumbel.proj.weight.data.zero_()
    gumbel.proj.bias.data.zero_()
    assert gumbel(z).losses["kl"].abs() < 1e-6


def test_temperature_follows_its_schedule():
    tokenizer = build(preset("tokenizer", "tiny_gumbel"))
    assert tokenizer.quantizer.temperature == 1.0
    apply_step(tokenizer, 150)
    assert tokenizer.quantizer.temperature == pytest.approx((1 + 0.0625) / 2)
    apply_step(tokenizer, 10**6)
    assert tokenizer.quantizer.temperature == pytest.approx(0.0625)
    quantizer = Gumbel(4, 2, temperature=Linear(1.0, 0.5, begin=10))
    quantizer.at_step(10)
    assert quantizer.temperature == 0.5


def test_cold_mixtures_are_rows(gumbel, z):
    gumbel.train().temperature.fill_(1e-4)
    gumbel.straight_through = False
    quantized = gumbel(z)
    torch.testing.assert_close(quantized.z, gumbel.lookup(quantized.ids), atol=1e-3, rtol=1e-3)


def test_gumbel_of_a_subset_uses_no_other_code(z):
    torch.manual_seed(0)
    gumbel = Gumbel(11, 4, used=3)
    gumbel.subset.used.copy_(torch.tensor([7, 2, 9]))
    assert gumbel.vocab_sizes == (3,)
    quantized = gumbel.train()(z)
    codes = torch.tensor([7, 2, 9])[quantized.ids]
    torch.testing.assert_close(quantized.z, gumbel.codebook.weight[codes])
    assert torch.equal(gumbel.eval().encode(z), gumbel.proj(z)[..., [7, 2, 9]].argmax(-1))
    with pytest.raises(UserError, match="used=12"):
        Gumbel(11, 4, used=12)


def test_places_and_back():
    subset = CodeSubset(4)
    subset.used.copy_(torch.tensor([30, 4, 11, 5]))
    codes = torch.tensor([[4, 30, 5], [11, 4, 4]])
    places = subset.compress(codes)
    assert places.tolist() == [[1, 0, 3], [2, 1, 1]]
    assert torch.equal(subset.expand(places), codes)


def test_unknown_codes():
    codes = torch.tensor([[4, 99, 5, 98]])

    def compress(unknown, noise=None):
        subset = CodeSubset(3, unknown=unknown)
        subset.used.copy_(torch.tensor([5, 4, 11]))
        return subset, subset.compress(codes, noise=noise).tolist()

    subset, places = compress("extra")
    assert (subset.size, places) == (4, [[1, 3, 0, 3]])
    assert subset.expand(torch.tensor([3])).tolist() == [5]
    assert compress(2)[1] == [[1, 2, 0, 2]]
    assert compress("random")[1] == compress("random")[1] == [[1, 99 % 3, 0, 98 % 3]]
    drawn = {tuple(compress("random", SeededNoise([seed]))[1][0]) for seed in range(50)}
    assert {d[0] for d in drawn} == {1}
    assert {d[1] for d in drawn} == {0, 1, 2}
    with pytest.raises(UserError, match="neither random nor extra"):
        CodeSubset(3, unknown=3)


def test_subset_of_a_codebook(z):
    torch.manual_seed(0)
    whole = VQ(11, 4)
    cut = Subset(whole, used=4, unknown="extra")
    cut.subset.used.copy_(whole.encode(z).unique()[[3, 0, 2, 1]])
    ids = cut(z).ids
    assert cut.vocab_sizes == (5,)
    assert torch.equal(cut(z).z, whole(z).z)
    known = ids < 4
    assert known.any()
    assert torch.equal(cut.lookup(ids)[known], whole.lookup(whole.encode(z))[known])
    with pytest.raises(UserError, match="used=12"):
        Subset(whole, used=12)
