"""The feature networks: right weights, right images, right numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from argen.errors import CheckpointError, UserError
from argen.images.pixels import to_float, to_uint8
from argen.pretrained.efficientnet import (
    SameConv2d,
    load_efficientnet_lite0,
    normalise,
    own_key,
    weights_file,
)
from argen.pretrained.features import EfficientNetLite0Features, build_extractor
from argen.pretrained.inception import InceptionFeatures


@pytest.fixture(scope="module")
def extractor():
    return build_extractor("efficientnet_lite0")


def photo(name: str, side: int) -> torch.Tensor:
    datasets = pytest.importorskip("sklearn.datasets")
    pixels = datasets.load_sample_image(name)
    edge = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - edge) // 2, (pixels.shape[1] - edge) // 2
    image = Image.fromarray(pixels[top : top + edge, left : left + edge])
    return torch.from_numpy(np.array(image.resize((side, side), Image.Resampling.BICUBIC)))


def test_every_published_weight_is_used_once():
    published = torch.load(weights_file(), weights_only=True)
    network, sha256 = load_efficientnet_lite0()
    own = network.state_dict()
    assert {own_key(key) for key in published} == set(own)
    assert all(torch.equal(own[own_key(key)], tensor) for key, tensor in published.items())
    # The file's own name carries the first digits of its hash.
    assert weights_file().stem.endswith(sha256[:8])
    assert not network.training


@pytest.mark.parametrize(
    ("name", "first", "acceptable"),
    [
        # ImageNet: 698 palace, 442 bell cote, 663 monastery, 483 castle; 985 daisy.
        ("china.jpg", 698, {698, 442, 663, 483}),
        ("flower.jpg", 985, {985}),
    ],
)
def test_photographs_are_recognised(name, first, acceptable):
    network, _ = load_efficientnet_lite0()
    pixels = photo(name, 224).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        logits = network(normalise(pixels))[0]
    assert int(logits.argmax()) == first
    assert acceptable <= set(logits.topk(5).indices.tolist())


def test_normalisation_is_the_one_of_training():
    # The stem's batch norm remembers what it saw in training; photographs must look like that.
    network, _ = load_efficientnet_lite0()
    conv, norm = network.stem
    pixels = torch.stack([photo(n, 224) for n in ("china.jpg", "flower.jpg")]).movedim(-1, 1)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

    def distance(inputs):
        seen = conv(inputs).transpose(0, 1).flatten(1)
        ratio = (seen.var(1) + norm.eps) / (norm.running_var + norm.eps)
        gap = (seen.mean(1) - norm.running_mean).square() / (norm.running_var + norm.eps)
        return float((gap + ratio - 1 - ratio.log()).mean()) / 2

    with torch.inference_mode():
        assert distance(normalise(pixels.float())) < 0.2
        assert distance((pixels / 255 - mean) / std) > 0.8


@pytest.mark.parametrize("size", [7, 8, 15, 32])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_same_padding_puts_the_odd_pixel_last(size, kernel, stride):
    conv = SameConv2d(1, 1, kernel, stride=stride, bias=False)
    x = torch.rand(1, 1, size, size)
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    padded = torch.zeros(size + total, size + total)
    padded[total // 2 : total // 2 + size, total // 2 : total // 2 + size] = x[0, 0]
    windows = padded.unfold(0, kernel, stride).unfold(1, kernel, stride)
    expected = (windows * conv.weight[0, 0]).sum((-1, -2))
    assert conv(x).shape[-2:] == (out, out)
    torch.testing.assert_close(conv(x)[0, 0], expected)


def test_folded_network_equals_the_plain_one(extractor):
    images = torch.rand(3, 3, 40, 40) * 2 - 1
    plain, _ = load_efficientnet_lite0()
    pixels = to_uint8(images).float()
    resized = F.interpolate(pixels, size=(112, 112), mode="bilinear", antialias=True)
    with torch.inference_mode():
        expected = plain.features(normalise(resized))
    found = extractor(images)["pool"]
    assert found.shape == (3, extractor.dim)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_features_do_not_depend_on_batching_or_8_bit_form(extractor):
    images = torch.rand(5, 3, 32, 32) * 2 - 1
    whole = extractor.extract(images, batch_size=5)
    torch.testing.assert_close(extractor.extract(images, batch_size=2), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        extractor.extract([to_uint8(images[:2]), to_float(to_uint8(images[2:]))]),
        whole,
        atol=1e-5,
        rtol=1e-4,
    )


def test_features_stay_float32_under_autocast(extractor):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        inside = extractor(images)["pool"]
    assert inside.dtype == torch.float32
    assert torch.equal(inside, extractor(images)["pool"])


def test_inception_is_torch_fidelitys_to_the_bit(inception_file):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    ours = build_extractor("inception_v3_compat", weights_path=inception_file)
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(inception_file),
    )
    pixels = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8)
    torch.set_float32_matmul_precision("medium")  # as a training run may have left it
    found = ours(to_float(pixels))
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision("highest")
    pool, logits = theirs(pixels)
    assert torch.equal(found["pool"], pool)
    assert torch.equal(found["logits_unbiased"], logits)
    assert pool.std(0).max() > 0, "the three images must differ in their features"


def test_inception_refuses_other_weights(inception_file):
    with pytest.raises(CheckpointError, match="sha256"):
        InceptionFeatures(weights_path=inception_file, sha256="0" * 64)
    with pytest.raises(CheckpointError, match="Inception"):
        InceptionFeatures(weights_path=weights_file())


def test_missing_weights_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"fetch_assets\.py inception"):
        build_extractor("inception_v3_compat")
    with pytest.raises(UserError, match=r"nowhere\.pth.*download https"):
        build_extractor("inception_v3_compat", weights_path=tmp_path / "nowhere.pth")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(weights_file().read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="reinstall"):
        EfficientNetLite0Features(path=broken)


def test_unknown_extractor_suggests_a_known_one():
    with pytest.raises(UserError, match="Did you mean 'efficientnet_lite0'"):
        build_extractor("efficientnet_lite")
