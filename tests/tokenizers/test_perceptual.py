"""Perceptual distances: LPIPS against torchmetrics, frozen networks, what is not saved."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from argen.errors import CheckpointError, UserError
from argen.objectives.perceptual import ConvNeXtDistance, FeatureDistance, perceptual_distance
from argen.pretrained.tapped import TappedNetwork
from argen.pretrained.vgg_lpips import LPIPS, VGG_PLACES, VGG_WIDTHS


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """Return a file of random weights under torchvision's keys."""
    torch.manual_seed(0)
    weights, width, places = {}, 3, iter(VGG_PLACES)
    for widths in VGG_WIDTHS:
        for wider in widths:
            key = f"features.{next(places)}"
            weights[f"{key}.weight"] = torch.randn(wider, width, 3, 3) * (2 / (9 * width)) ** 0.5
            weights[f"{key}.bias"] = torch.randn(wider) * 0.1
            width = wider
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(weights, path)
    return path


def random_images(rows=2, side=32, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 3, side, side, generator=draws) * 2 - 1


def test_lpips_is_the_published_distance(vgg_file, monkeypatch):
    from torchmetrics.functional.image import lpips as published

    # Its classifier of 124M parameters is not needed; drawing them would take most of the time.
    for name in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    reference = published._LPIPS(pretrained=True, net="vgg", pnet_rand=True)
    monkeypatch.undo()
    ours, weights = LPIPS(vgg16=vgg_file), torch.load(vgg_file, weights_only=True)
    for slices in reference.net.children():
        for name, part in slices.named_children():
            if isinstance(part, nn.Conv2d):
                part.weight.data = weights[f"features.{name}.weight"]
                part.bias.data = weights[f"features.{name}.bias"]
    a, b = random_images(side=16, seed=1), random_images(side=16, seed=2)
    expected = reference.eval()(a, b).mean()
    assert expected > 0.01
    torch.testing.assert_close(ours(a, b), expected, rtol=1e-4, atol=1e-6)
    assert ours(a, a) == 0


def test_lpips_stays_frozen_and_out_of_checkpoints(vgg_file):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Linear(2, 2)
            self.distance = LPIPS(vgg16=vgg_file)

    holder = Holder().train()
    assert not any(part.training for part in holder.distance.modules())
    assert not any(p.requires_grad for p in holder.distance.parameters())
    assert set(holder.state_dict()) == {"own.weight", "own.bias"}
    before = {k: v.clone() for k, v in holder.distance.named_buffers()}
    holder.load_state_dict({"own.weight": torch.ones(2, 2), "own.bias": torch.ones(2)})
    assert holder.own.weight.sum() == 4
    assert all(torch.equal(v, before[k]) for k, v in holder.distance.named_buffers())
    images = random_images(rows=1, side=16).requires_grad_()
    holder.distance(images, random_images(rows=1, side=16, seed=3)).backward()
    assert images.grad.abs().sum() > 0
    with pytest.raises(UserError, match="at least 16"):
        holder.distance(random_images(side=8), random_images(side=8))


def test_missing_or_foreign_weights_say_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="download https"):
        LPIPS(vgg16=tmp_path / "no.pth")
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match=r"features\.0\.bias"):
        LPIPS(vgg16=tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match="ConvNeXt"):
        ConvNeXtDistance(weights=None)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not hold"):
        ConvNeXtDistance(weights=tmp_path / "other.pth")


def test_fallback_says_that_it_is_no_lpips(caplog):
    with caplog.at_level(logging.WARNING):
        distance = perceptual_distance()
    assert "EfficientNet-Lite0" in caplog.text
    assert "vgg16=FILE" in caplog.text
    sharp = F.interpolate(random_images(side=8), size=32, mode="nearest")
    blurred = F.avg_pool2d(F.pad(sharp, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    images = blurred.clone().requires_grad_()
    near, far = distance(images, sharp), distance(random_images(seed=5), sharp)
    assert 0 < near < far < 4
    near.backward()
    assert images.grad.abs().sum() > 0
    assert distance(sharp, sharp) == 0


def test_tapped_network():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU()))
    tapped = TappedNetwork(network, taps=["1", "0"])
    later, earlier = tapped(random_images(rows=1, side=4))
    assert (later.shape[1], earlier.shape[1]) == (5, 4)
    torch.testing.assert_close(network[1](earlier), later)
    assert not any(part._forward_hooks for part in network.modules())
    with pytest.raises(UserError, match="no part 2"):
        TappedNetwork(network, taps=["2"])


def test_small_images_are_enlarged():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    maps = FeatureDistance(network, taps=["0"], size=16).maps(random_images(side=8))
    assert maps[0].shape == (2, 4, 16, 16)


def test_convnext_distance(tmp_path):
    from torchvision.models import convnext_small

    torch.manual_seed(0)
    torch.save(convnext_small(weights=None).state_dict(), tmp_path / "convnext.pth")
    distance = ConvNeXtDistance(weights=tmp_path / "convnext.pth", size=32)
    images = random_images(rows=1, side=24).requires_grad_()
    target = random_images(rows=1, side=24, seed=1)
    distance(images, target).backward()
    assert images.grad.abs().sum() > 0
    assert distance(target, target) == 0
    assert distance.state_dict() == {}
