import math

import pytest
import torch

from argen.layers.noise import SeededNoise

AT = torch.arange(64)


@pytest.mark.parametrize("kind", ["uniform", "normal", "gumbel"])
def test_draws_depend_on_their_key_alone(kind):
    together = getattr(SeededNoise([3, 11, 3]), kind)(AT, (5,))
    alone = getattr(SeededNoise([11]), kind)(AT[20:24], (5,))
    assert torch.equal(together[1:2, 20:24], alone)
    assert torch.equal(together[0], together[2])
    assert together.shape == (3, 64, 5)


def test_positions_of_each_row():
    noise = SeededNoise([1, 2])
    own = noise.uniform(torch.tensor([[0, 5], [9, 2]]))
    assert torch.equal(own[0], noise.uniform(torch.tensor([0, 5]))[0])
    assert torch.equal(own[1], noise.uniform(torch.tensor([9, 2]))[1])


def test_seeds_positions_and_uses_are_told_apart():
    one = SeededNoise(range(50)).uniform(AT, use=0)
    other = SeededNoise(range(50)).uniform(AT, use=1)
    assert torch.cat((one.flatten(), other.flatten())).unique().numel() > 0.999 * 2 * 50 * 64
    pairs = [
        (one.flatten(), other.flatten()),
        (one[:-1].flatten(), one[1:].flatten()),
        (one[:, :-1].flatten(), one[:, 1:].flatten()),
    ]
    for a, b in pairs:
        correlation = torch.corrcoef(torch.stack((a, b)))[0, 1].item()
        assert abs(correlation) < 4 / math.sqrt(a.numel())


def test_a_longer_draw_starts_like_a_shorter_one():
    noise = SeededNoise([5])
    assert torch.equal(noise.uniform(AT, (8,))[..., :3], noise.uniform(AT, (3,)))


def test_uniform():
    x = SeededNoise(range(100)).uniform(AT, (20,)).double()
    n = x.numel()
    assert 0 < x.min() < 1e-4
    assert 1 - 1e-4 < x.max() < 1
    assert abs(x.mean() - 0.5) < 4 * math.sqrt(1 / 12 / n)
    counts = torch.histc(x, bins=32, min=0, max=1)
    chi_square = ((counts - n / 32).square() / (n / 32)).sum()
    assert chi_square < 31 + 4 * math.sqrt(2 * 31)


def test_normal():
    x = SeededNoise(range(100)).normal(AT, (20,)).double()
    n = x.numel()
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((x**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert 4 < x.abs().max() < 7


def test_gumbel():
    x = SeededNoise(range(100)).gumbel(AT, (20,)).double()
    n = x.numel()
    assert x.isfinite().all()
    assert abs(x.mean() - 0.57722) < 4 * math.sqrt(math.pi**2 / 6 / n)
    assert abs((x < 0).double().mean() - math.exp(-1)) < 4 * math.sqrt(0.25 / n)


def test_gumbel_maxima_follow_the_logits():
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    noise = SeededNoise(range(2000)).gumbel(torch.arange(10), (4,))
    shares = torch.bincount((logits + noise).argmax(-1).flatten(), minlength=4) / 20000
    expected = torch.softmax(logits, dim=0)
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / 20000).sqrt()).all()


@pytest.mark.parametrize("rest", [0, (1 << 40) - 1])
def test_uniform_lies_between_0_and_1_for_all_of_the_first_24_bits(rest, monkeypatch):
    noise = SeededNoise([0])
    for first in torch.arange(1 << 24).split(1 << 22):
        bits = (first << 40) | rest
        monkeypatch.setattr(noise, "_bits", lambda *key, bits=bits: bits[None, :, None])
        x = noise.uniform(AT)
        assert x.min() > 0
        assert x.max() < 1
        assert noise.gumbel(AT).isfinite().all()


def test_uniform_fills_53_bits_without_rounding():
    x = SeededNoise(range(500)).uniform(AT)
    assert x.dtype == torch.float64
    whole = (x * 2.0**53).long()
    assert torch.equal(whole.double() * 2.0**-53, x)
    assert (whole & 1).all()  # the half step
    shares = torch.stack([(whole >> bit & 1).double().mean() for bit in range(1, 53)])
    assert (shares - 0.5).abs().max() < 5 * 0.5 / math.sqrt(x.numel())
