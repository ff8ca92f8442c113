"""LFQ, BSQ and FSQ: codes, bit orders, and entropies against a list of all codes."""

import math

import pytest
import torch
from sizes import Largest
from torch.nn import functional as F

from argen.errors import UserError
from argen.tokenizers.quantizers import bit_entropy
from argen.tokenizers.quantizers.fsq import FSQ
from argen.tokenizers.quantizers.lfq import BSQ, LFQ


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def all_signs(d, scale=1.0):
    return torch.cartesian_prod(*[torch.tensor([-scale, scale])] * d).view(-1, d)


def by_force(z, scale, temperature, eps=1e-5):
    """Return sample entropy and the mean assignment by listing all codes of one group."""
    logits = 2 * z.double() @ all_signs(z.shape[-1], scale).double().T / temperature
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1).mean(), log_p.exp().mean(0)


def entropy(p, eps=1e-5):
    return -(p * torch.log(p + eps)).sum(-1)


def test_zero_is_negative_and_the_first_number_is_the_lowest_bit():
    z = torch.tensor([[0.3, -1.0, 0.0], [-2.0, 0.1, 5.0]])
    found = LFQ(3)(z)
    assert found.ids.tolist() == [1, 6]
    assert found.z.tolist() == [[1.0, -1.0, -1.0], [-1.0, 1.0, 1.0]]
    assert LFQ(3, first_bit="highest").encode(z).tolist() == [4, 3]


@pytest.mark.parametrize("first_bit", ["lowest", "highest"])
@pytest.mark.parametrize("split", [None, (2, 6), (1, 3, 4)])
def test_ids_and_codes_are_one_to_one(first_bit, split):
    quantizer = LFQ(8, groups=2, split=split, first_bit=first_bit)
    z = torch.randn(4, 5, 8)
    ids = quantizer.encode(z)
    assert quantizer.vocab_sizes == tuple(2**b for b in split or (4, 4))
    assert (ids < torch.tensor(quantizer.vocab_sizes)).all()
    torch.testing.assert_close(quantizer.lookup(ids), torch.where(z > 0, 1.0, -1.0))


def test_split_cuts_the_same_bits():
    z = torch.randn(30, 18)
    whole, halves = LFQ(18).encode(z), LFQ(18, split=(6, 12)).encode(z)
    assert torch.equal(whole, halves[:, 0] + 64 * halves[:, 1])


@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("kind", [LFQ, BSQ])
def test_entropies_equal_the_list_of_all_codes(kind, temperature):
    d, groups = 5, 3
    z = torch.randn(7, 4, d * groups) * 0.3
    for form in ("pooled", "group", "bitwise"):
        quantizer = kind(d * groups, groups=groups, temperature=temperature, batch_entropy=form)
        losses = quantizer.train()(z).losses
        parts = quantizer.normalise(z).view(-1, groups, d)
        sample, mean = zip(
            *(by_force(parts[:, g], quantizer.magnitude, temperature) for g in range(groups))
        )
        expected = {
            "pooled": entropy(torch.stack(mean).mean(0)),
            "group": entropy(torch.stack(mean)).mean(),
        }
        torch.testing.assert_close(
            losses["sample_entropy"].double(), torch.stack(sample).mean(), rtol=1e-5, atol=1e-6
        )
        if form == "bitwise":
            ones = torch.stack(mean) @ (all_signs(d) > 0).double()  # g d
            expected["bitwise"] = entropy(torch.stack((ones, 1 - ones), -1)).sum(-1).mean()
            joint = entropy(torch.stack(mean)).mean()
            assert joint <= expected["bitwise"] <= d * math.log(2) + 1e-6
        torch.testing.assert_close(
            losses["batch_entropy"].double(), expected[form], rtol=1e-5, atol=1e-6
        )


def test_gradients_of_the_entropies_equal_the_list_of_all_codes():
    z = (torch.randn(9, 6) * 0.01).requires_grad_()
    losses = LFQ(6).train()(z).losses
    (ours,) = torch.autograd.grad(losses["sample_entropy"] - losses["batch_entropy"], z)
    sample, mean = by_force(z, 1.0, 0.01)
    (theirs,) = torch.autograd.grad(sample - entropy(mean), z)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_clamped_form_is_the_same_in_chunks():
    z = torch.randn(10, 2, 4).mul(0.01).requires_grad_()
    whole = bit_entropy.listed_entropies(z, 1.0, 0.01)
    parts = bit_entropy.listed_entropies(z, 1.0, 0.01, max_elements=64)
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b)
    for pair in zip(whole, parts):
        one, two = (torch.autograd.grad(x.square().sum(), z, retain_graph=True)[0] for x in pair)
        torch.testing.assert_close(one, two)


def test_eighteen_bits_are_evaluated_without_a_codebook():
    quantizer, z = LFQ(18), torch.randn(2, 8, 18)
    assert sum(b.numel() for b in quantizer.buffers()) < 100
    quantizer.eval()
    with Largest() as largest:
        found = quantizer(z)
        quantizer.lookup(found.ids)
        quantizer.encode(z)
    assert largest.elements <= z.numel()


def test_eighteen_bits_train_without_a_table_of_all_probabilities():
    quantizer, z = LFQ(18).train(), torch.randn(3, 100, 18, requires_grad=True)
    with Largest() as largest:
        losses = quantizer(z).losses
        (losses["sample_entropy"] - losses["batch_entropy"]).backward()
    assert largest.elements <= 2**18  # the mean assignment itself; the table would be 300 times it
    assert 0 < losses["batch_entropy"] <= 18 * math.log(2)
    assert z.grad.isfinite().all()


def test_spherical_codes_lie_on_the_sphere_and_near():
    quantizer, z = BSQ(12, groups=2).train(), torch.randn(50, 12) * 7
    found = quantizer(z)
    codes, unit = quantizer.lookup(found.ids).view(-1, 2, 6), F.normalize(z.view(-1, 2, 6), dim=-1)
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(50, 2))
    assert ((codes - unit).square().sum(-1) <= 2 - 2 / 6**0.5 + 1e-5).all()
    assert torch.equal(quantizer.encode(z), quantizer.encode(z / 100))


def test_bits_carry_what_no_id_can():
    quantizer = BSQ(80, as_bits=True).train()
    assert (quantizer.kind, quantizer.bits, quantizer.vocab_sizes) == ("binary", 80, ())
    z = torch.randn(3, 4, 80)
    found = quantizer(z)
    assert found.ids is None
    assert torch.equal(found.codes, (z > 0).long())
    torch.testing.assert_close(quantizer.lookup(found.codes), found.z)
    assert found.losses["batch_entropy"] <= 80 * math.log(2)


def test_fsq_in_groups():
    whole, groups = FSQ([5, 4]), FSQ([5, 4], groups=3)
    z = torch.randn(6, 6)
    found = groups(z)
    assert groups.vocab_sizes == (20, 20, 20)
    for g in range(3):
        part = whole(z[:, 2 * g : 2 * g + 2])
        assert torch.equal(found.ids[:, g], part.ids)
        torch.testing.assert_close(found.z[:, 2 * g : 2 * g + 2], part.z)
    torch.testing.assert_close(groups.lookup(found.ids), found.z)
    assert torch.equal(whole.digits(torch.tensor([13])), torch.tensor([[3, 2]]))


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="3 equal groups"):
        LFQ(8, groups=3)
    with pytest.raises(UserError, match="add up to 8"):
        LFQ(8, split=(3, 3))
    with pytest.raises(UserError, match="64-bit"):
        LFQ(80)
    with pytest.raises(UserError, match="lowest or highest"):
        LFQ(8, first_bit="first")
    with pytest.raises(UserError, match="pooled, group, bitwise"):
        LFQ(8, batch_entropy="all")
    with pytest.raises(UserError, match=r"2\^40 codes is out of reach"):
        LFQ(40).train()(torch.randn(2, 40))
