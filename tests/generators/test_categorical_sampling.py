"""Tokens by inversion of the cumulative distribution, at vocabularies of 2^18 too."""

import pytest
import torch

from argen.generators.heads.sampling import invert_cdf, sample_categorical, sample_probs
from argen.layers.noise import SeededNoise

V = 1 << 18


def probs_of(kind):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(V, generator=rng) if kind == "normal" else torch.zeros(V)
    return torch.softmax(logits, dim=-1)  # float32, as heads have them


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_total_variation_at_a_large_vocabulary(kind):
    """All but a share of 2e-3 of each code's own interval of numbers leads to that code."""
    probs = probs_of(kind)
    exact = probs.double()
    cdf = exact.cumsum(-1)
    start = torch.cat((cdf.new_zeros(1), cdf[:-1]))
    inset = 1e-3 * exact
    for inside in (start + inset, cdf - inset):
        found = invert_cdf(cdf, inside / cdf[-1])
        assert torch.equal(found, torch.arange(V))


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_samples_of_seeds_reach_the_codes_they_should(kind):
    probs, n = probs_of(kind).double(), 1 << 21
    numbers = SeededNoise([3]).uniform(torch.arange(n))[0]
    ids = invert_cdf(probs.cumsum(-1), numbers)
    reached = torch.bincount(ids, minlength=V) > 0
    expected = 1 - (1 - probs) ** n
    deviation = (expected * (1 - expected)).sum().sqrt()
    assert abs(float(reached.sum() - expected.sum())) < 5 * float(deviation) + 1


def test_float32_probabilities_are_summed_in_float64():
    """Unlikely codes far behind in a large vocabulary are found by the numbers of their own."""
    probs = probs_of("normal")
    cdf = probs.double().cumsum(-1) / probs.double().sum()
    start = torch.cat((cdf.new_zeros(1), cdf[:-1]))
    for code in range(V - 40, V):
        for share in (0.05, 0.95):
            number = start[code] + share * (cdf[code] - start[code])
            assert int(sample_probs(probs, number)) == code


def test_tokens_of_probability_zero_are_never_picked():
    logits = torch.tensor([float("-inf"), 0.0, float("-inf"), 1.0, float("-inf")])
    numbers = torch.tensor([2.0**-53, 0.1, 0.3, 0.9, 1 - 2.0**-53], dtype=torch.float64)
    ids = sample_categorical(logits.expand(5, 5), numbers)
    assert ids.tolist() == [1, 1, 3, 3, 3]
