"""Discriminators: shapes, options, errors, augmentation."""

import pytest
import torch
from torch import nn

from argen.errors import UserError
from argen.objectives.diffaugment import DiffAugment
from argen.objectives.discriminators import (
    ActNorm,
    Blur,
    BlurDiscriminator,
    PatchDiscriminator,
    StyleGANDiscriminator,
)
from argen.objectives.feature_discriminator import FeatureDiscriminator


def random_images(rows=2, height=32, width=32, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 3, height, width, generator=draws) * 2 - 1


@pytest.mark.parametrize(("layers", "smallest"), [(1, 8), (2, 16), (3, 24)])
def test_patch_sizes(layers, smallest):
    judge = PatchDiscriminator(channels=4, layers=layers)
    for side in (smallest, 32, 45):
        logits = judge(random_images(height=side, width=64))
        assert logits.shape == (2, 1, judge.logit_side(side), judge.logit_side(64))
        assert logits.numel() > 0
    assert judge.logit_side(smallest - 8) < 1
    with pytest.raises(UserError, match="fewer layers"):
        judge(random_images(height=smallest - 8))


def test_patch_sees_a_patch():
    judge = PatchDiscriminator(channels=4, layers=1).eval()
    images = random_images(height=64, width=64).requires_grad_()
    judge(images)[0, 0, 16, 16].backward()
    rows = images.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 16


def test_biases_only_where_no_batch_norm_follows():
    def biased(norm):
        judge = PatchDiscriminator(channels=4, layers=2, norm=norm)
        return [m.bias is not None for m in judge.modules() if isinstance(m, nn.Conv2d)]

    assert biased("batch") == [True, False, False, True]
    assert biased("act") == [True, True, True, True]
    with pytest.raises(UserError, match="batch or act"):
        PatchDiscriminator(norm="group")


def test_actnorm_normalises_its_first_batch_only():
    norm = ActNorm(4)
    x = torch.randn(8, 4, 5, 5) * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1) + 3
    torch.testing.assert_close(norm.eval()(x), x)
    y = norm.train()(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm(x + 1) - y, norm.scale.expand_as(x).detach(), atol=1e-4, rtol=0)
    fresh = ActNorm(4)
    fresh.load_state_dict(norm.state_dict())
    torch.testing.assert_close(fresh(x + 1), norm(x + 1))


@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_blur_keeps_what_is_flat(kernel):
    flat = torch.full((1, 2, 12, 16), 3.0)
    halved = Blur(kernel)(flat)
    assert halved.shape == (1, 2, 6, 8)
    torch.testing.assert_close(halved[..., 2:4, 2:4], torch.full((1, 2, 2, 2), 3.0))
    same = Blur(kernel, stride=1, border="reflect")(flat)
    torch.testing.assert_close(same, flat)


def test_blur_discriminator_gives_one_grid_for_every_size():
    for blur in (True, False):
        judge = BlurDiscriminator(channels=8, stages=2, norm_groups=4, blur=blur)
        for side in (32, 64):
            assert judge(random_images(height=side, width=48)).shape == (2, 1, 16, 16)
    with pytest.raises(UserError, match="at least one stage"):
        BlurDiscriminator(stages=0)
    with pytest.raises(UserError, match="3, 4 or 5"):
        BlurDiscriminator(blur_kernel=6)


def test_style_discriminator_widths():
    judge = StyleGANDiscriminator(image_size=64, max_channels=32)
    assert judge(random_images(height=64, width=64)).shape == (2, 1)
    assert [s.conv1.out_channels for s in judge.stages] == [32, 32, 32, 32]
    assert judge.conv_in.out_channels == 16
    with pytest.raises(UserError, match="set its image_size"):
        judge(random_images())
    with pytest.raises(UserError, match="power of two"):
        StyleGANDiscriminator(image_size=48)


def test_feature_discriminator_trains_heads_alone():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 6, 3, padding=1))
    judge = FeatureDiscriminator(network, taps=["0", "1"], channels=[8, 6], size=16, kernel=3)
    images = random_images().requires_grad_()
    logits = judge(images)
    assert logits.shape == (2, 2 * 64)
    logits.mean().backward()
    assert images.grad.abs().sum() > 0
    assert all(p.grad is not None for p in judge.heads.parameters())
    assert all(p.grad is None for p in network.parameters())
    assert not any("backbone" in key for key in judge.state_dict())
    with pytest.raises(UserError, match="as many channels"):
        FeatureDiscriminator(network, taps=["0"], channels=[8, 6])


def test_augmentation_changes_what_it_says():
    torch.manual_seed(0)
    images = random_images(rows=4)
    shifted = DiffAugment(policies=["translation"])(images)
    for before, after in zip(images, shifted):
        rows = (after != 0).any(0)
        assert 28 * 28 <= rows.sum() <= 32 * 32
        assert set(after[after != 0].tolist()) <= set(before.flatten().tolist())
    cut = DiffAugment(policies=["cutout"])(images)
    hidden = (cut == 0).all(1).flatten(1).sum(1)
    assert ((hidden >= 8 * 8) & (hidden <= 16 * 16)).all()
    assert torch.equal(cut[cut != 0], images[cut != 0])
    coloured = DiffAugment(policies=["color"])(images)
    assert (coloured != images).all(1).float().mean() > 0.9
    assert torch.equal(DiffAugment(probability=0.0)(images), images)
    with pytest.raises(UserError, match="Unknown policy"):
        DiffAugment(policies=["flip"])


def test_augmentation_lets_gradients_through():
    torch.manual_seed(0)
    images = random_images().requires_grad_()
    DiffAugment()(images).square().sum().backward()
    assert (images.grad != 0).float().mean() > 0.3
