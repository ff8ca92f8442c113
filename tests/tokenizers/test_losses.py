"""Adversarial and reconstruction terms, one by one."""

import math

import pytest
import torch
from torch.nn import functional as F

from argen.errors import UserError
from argen.objectives.adversarial import discriminator_loss, generator_loss
from argen.objectives.balance import adaptive_weight
from argen.objectives.image_terms import L1, L2
from argen.objectives.regularizers import LeCam, gradient_penalty
from argen.tokenizers.schedules import Linear, WarmupCosine, apply_step, value_at

REAL = torch.tensor([[2.0, 0.5], [-1.0, 0.0]])
FAKE = torch.tensor([[-2.0, 0.5], [1.0, 0.0]])


def test_reconstruction():
    assert L1()(REAL, FAKE) == pytest.approx((4 + 0 + 2 + 0) / 4)
    assert L2()(REAL, FAKE) == pytest.approx((16 + 0 + 4 + 0) / 4)
    unit_real, unit_fake = (REAL + 1) / 2, (FAKE + 1) / 2
    assert L1(unit_range=True)(REAL, FAKE) == (unit_real - unit_fake).abs().mean()
    assert L2(unit_range=True)(REAL, FAKE) == (unit_real - unit_fake).square().mean()


def test_hinge():
    real, fake = (0 + 0.5 + 2 + 1) / 4, (0 + 1.5 + 2 + 1) / 4
    assert discriminator_loss("hinge")(REAL, FAKE) == pytest.approx((real + fake) / 2)
    assert generator_loss("hinge")(FAKE) == pytest.approx(0.5 / 4)


def test_vanilla_is_the_cross_entropy():
    ones, zeros = torch.ones_like(REAL), torch.zeros_like(REAL)
    entropy = F.binary_cross_entropy_with_logits
    expected = (entropy(REAL, ones) + entropy(FAKE, zeros)) / 2
    torch.testing.assert_close(discriminator_loss("vanilla")(REAL, FAKE), expected)
    torch.testing.assert_close(generator_loss("non_saturating")(FAKE), entropy(FAKE, ones))


def test_non_saturating_of_each_image():
    expected = (math.log1p(math.exp(0.75)) + math.log1p(math.exp(-0.5))) / 2
    assert generator_loss("non_saturating_image")(FAKE) == pytest.approx(expected)
    assert generator_loss("non_saturating")(FAKE) != pytest.approx(expected)


def test_swapped_cross_entropy_gives_reconstructions_no_gradient():
    fake = FAKE.clone().requires_grad_()
    real = REAL.clone().requires_grad_()
    loss = discriminator_loss("swapped_bce")(real, fake)
    ones, zeros = torch.ones_like(REAL), torch.zeros_like(REAL)
    entropy = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(loss, (entropy(ones, REAL) + entropy(zeros, FAKE)) / 2)
    loss.backward()
    assert fake.grad.abs().sum() == 0
    assert real.grad.abs().sum() > 0


@pytest.mark.parametrize("function", [generator_loss, discriminator_loss])
def test_unknown_forms_are_named(function):
    with pytest.raises(UserError, match="Did you mean 'hinge'"):
        function("hing")
    assert function(max) is max


def test_adaptive_weight_balances_gradients():
    last = torch.tensor([3.0, 4.0], requires_grad=True)
    pixel, judged = (last * torch.tensor([6.0, 8.0])).sum(), (last * torch.tensor([0.0, 2.0])).sum()
    weight = adaptive_weight(pixel, judged, last, eps=0.0)
    assert weight == pytest.approx(5.0)
    assert not weight.requires_grad
    assert adaptive_weight(pixel, judged, last, high=2.0) == pytest.approx(2.0)
    assert adaptive_weight(pixel * 0, judged, last, low=0.015) == pytest.approx(0.015)


def test_gradient_penalty():
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    logits = (images.flatten(1) * 3).sum(1)
    assert gradient_penalty(logits, images) == pytest.approx(0.5 * 9 * 48)


def test_lecam_compares_before_it_updates():
    lecam = LeCam(decay=0.9)
    lecam.real.fill_(0.3)
    lecam.fake.fill_(-0.2)
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0])
    assert lecam(real, fake) == pytest.approx((2 + 0.2) ** 2 + (0.3 + 0.5) ** 2)
    assert lecam.real.item() == pytest.approx(0.9 * 0.3 + 0.1 * 2)
    assert lecam.fake.item() == pytest.approx(0.9 * -0.2 + 0.1 * -0.5)
    lecam.eval()
    lecam(real, fake)
    assert lecam.real.item() == pytest.approx(0.9 * 0.3 + 0.1 * 2)


def test_lecam_of_every_logit_updates_first():
    lecam = LeCam(decay=0.5, of_means=False, update_first=True)
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0])
    new_real, new_fake = 1.0, -0.25
    expected = ((1 - new_fake) ** 2 + (3 - new_fake) ** 2) / 2
    expected += ((new_real + 1) ** 2 + new_real**2) / 2
    assert lecam(real, fake) == pytest.approx(expected)
    assert lecam.state_dict()["real"].item() == pytest.approx(new_real)


def test_linear():
    ramp = Linear(1.0, 3.0, begin=10, steps=4)
    assert [ramp(s) for s in (0, 10, 11, 14, 99)] == [1.0, 1.0, 1.5, 3.0, 3.0]
    jump = Linear(0.0, 0.5, begin=10)
    assert [jump(s) for s in (9, 10)] == [0.0, 0.5]
    assert value_at(ramp, 12) == 2.0
    assert value_at(0.25, 12) == 0.25


def test_warmup_cosine():
    schedule = WarmupCosine(start=0.5, peak=1.0, end=0.0, warmup=10, steps=30)
    expected = [0.5, 0.75, 1.0, 0.5, 0.0, 0.0]
    assert [schedule(s) for s in (0, 5, 10, 20, 30, 99)] == pytest.approx(expected)
    with pytest.raises(UserError, match="warm-up"):
        WarmupCosine(start=0.5, peak=1.0, end=0.0, warmup=10, steps=10)


def test_every_part_follows_the_step():
    class Follower(torch.nn.Module):
        def at_step(self, step):
            self.step = step

    module = torch.nn.Sequential(Follower(), torch.nn.Sequential(Follower()))
    apply_step(module, 7)
    assert module[0].step == module[1][0].step == 7
