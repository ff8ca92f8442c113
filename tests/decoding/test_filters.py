import pytest
import torch

from argen.decoding.filters import Filters, keep_argmax, keep_min_p, keep_top_k, keep_top_p
from argen.errors import UserError


@pytest.fixture
def logits():
    return 2 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0))


def kept(filtered):
    return filtered > float("-inf")


@pytest.mark.parametrize("k", [1, 7, 39])
def test_top_k_keeps_the_k_largest(logits, k):
    filtered = keep_top_k(logits, k)
    assert (kept(filtered).sum(-1) == k).all()
    least = filtered.masked_fill(~kept(filtered), float("inf")).amin(-1)
    most_dropped = logits.masked_fill(kept(filtered), float("-inf")).amax(-1)
    assert (least > most_dropped).all()
    assert torch.equal(filtered[kept(filtered)], logits[kept(filtered)])


def test_top_k_keeps_ties():
    assert kept(keep_top_k(torch.tensor([1.0, 3.0, 2.0, 2.0]), 2)).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("from_below", [False, True])
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p, from_below):
    accept = kept(keep_top_p(logits, p, from_below=from_below))
    probs = torch.softmax(logits, dim=-1)
    mass = (probs * accept).sum(-1)
    least = probs.masked_fill(~accept, 2.0).amin(-1)
    assert (mass >= p - 1e-6).all()
    assert (mass - least <= p + 1e-6).all()  # without its least likely token it falls short
    assert (least >= probs.masked_fill(accept, 0.0).amax(-1)).all()


def test_both_nuclei_are_the_same_set(logits):
    above, below = keep_top_p(logits, 0.7), keep_top_p(logits, 0.7, from_below=True)
    assert torch.equal(above, below)


def test_a_sure_token_is_all_that_stays():
    sure = torch.tensor([[0.0, 50.0, 0.0]])
    for filtered in (keep_top_p(sure, 0.5), keep_min_p(sure, 0.5), keep_top_k(sure, 1)):
        assert kept(filtered).tolist() == [[False, True, False]]


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_min_p_is_a_share_of_the_best(logits, p):
    probs = torch.softmax(logits, dim=-1)
    assert torch.equal(kept(keep_min_p(logits, p)), probs >= p * probs.amax(-1, keepdim=True))


def test_neutral_values_change_nothing(logits):
    assert torch.equal(Filters()(logits), logits)
    assert torch.equal(keep_top_k(logits, 0), logits)
    assert torch.equal(keep_top_k(logits, 40), logits)
    assert torch.equal(keep_top_p(logits, 1.0), logits)
    assert torch.equal(keep_min_p(logits, 0.0), logits)


def test_zero_temperature_is_greedy(logits):
    filtered = Filters(temperature=0.0, top_k=5)(logits)
    assert torch.equal(filtered, keep_argmax(logits))
    assert torch.equal(kept(filtered).int().argmax(-1), logits.argmax(-1))
    tied = keep_argmax(torch.tensor([1.0, 2.0, 2.0]))
    assert kept(tied).tolist() == [False, True, False]


def test_temperature_comes_before_the_nucleus(logits):
    cold = Filters(temperature=0.25, top_p=0.8)(logits)
    assert torch.equal(cold, keep_top_p(logits / 0.25, 0.8))
    assert kept(cold).sum() < kept(Filters(top_p=0.8)(logits)).sum()


def test_top_k_comes_before_the_nucleus(logits):
    chained = Filters(top_k=5, top_p=0.6, min_p=0.2)(logits)
    assert torch.equal(chained, keep_min_p(keep_top_p(keep_top_k(logits, 5), 0.6), 0.2))
    assert (kept(chained).sum(-1) >= 1).all()


def test_each_position_is_filtered_alone(logits):
    window = logits.view(2, 25, 40)
    filters = Filters(temperature=0.9, top_k=9, top_p=0.7, entropy_k=(2, 20))
    together = filters(window)
    for position in (0, 13, 24):
        alone = filters(window[:, position : position + 1])
        assert torch.equal(alone, together[:, position : position + 1])


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"temperature": -1.0}, "negative"),
        ({"top_k": -1}, "negative"),
        ({"top_p": 0.0}, r"\(0, 1\]"),
        ({"top_p": 1.5}, r"\(0, 1\]"),
        ({"min_p": 1.0}, r"\[0, 1\)"),
        ({"entropy_k": (5, 2)}, "min, max"),
    ],
)
def test_senseless_settings_are_refused(setting, text):
    with pytest.raises(UserError, match=text):
        Filters(**setting)


def test_more_than_the_vocabulary_is_refused():
    with pytest.raises(UserError, match="vocabulary of 40"):
        Filters(top_k=41).check(40)
    Filters(top_k=40).check(40)
