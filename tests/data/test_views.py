"""Stored versions of an image: mirror images, ten crops, and the posterior of their codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import ten_crop

from argen.build import build
from argen.data.digits import digits
from argen.data.draws import SampleRequest, hash_seed
from argen.data.views import larger_size, views_of
from argen.errors import UserError
from argen.recipes.encode import write_codes
from argen.runtime.presets import preset


def test_ten_crops_are_torchvisions() -> None:
    small, large = digits(image_size=16), digits(image_size=20)
    views = views_of("ten_crop", small, "train")
    expected = ten_crop(large.train.pixels(7), [16, 16])
    assert len(views) == 10
    for view, crop in zip(views, expected):
        number, seen = view.of(7, small.train, large.train, seed=0)
        assert number == 7
        assert torch.equal(seen, crop.float() / 127.5 - 1), view.name
    assert [view.name for view in views_of("ten_crop", small, "val")] == ["plain"]


def test_numbered_views_are_the_data_sets_augmentations() -> None:
    source = digits(image_size=16, shift=2)
    plain, first, second = (
        view.of(3, source.train, None, seed=5)[1] for view in views_of(3, source, "train")
    )
    assert torch.equal(plain, source.train[3]["image"])
    assert torch.equal(
        first, source.train[SampleRequest(3, hash_seed("code view", 5, 1, 3))]["image"]
    )
    assert not torch.equal(first, second)
    mirrored = views_of("flip", source, "train")[1]
    assert torch.equal(mirrored.of(3, source.train, None, seed=5)[1], plain.flip(-1))


@pytest.mark.parametrize(
    ("views", "told"), [(0, "at least 1"), ("nine_crop", "a number, flip or ten_crop")]
)
def test_unknown_views(views: int | str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        views_of(views, digits(), "train")


def test_room_for_crops() -> None:
    assert larger_size((256, 256), 1.1) == [281, 281]  # LlamaGen's
    for ratio in (1.0, 0.9, 1.01, 40):
        with pytest.raises(UserError, match="must make an image larger"):
            larger_size((16, 16), ratio)


@pytest.mark.parametrize("workers", [0, 3])
def test_a_generator_draws_from_the_stored_posterior(tmp_path: Path, workers: int) -> None:
    source = digits(image_size=16)
    tokenizer = build(preset("tokenizer", "tiny_kl"), image_size=16).eval()
    codes = write_codes(tokenizer, source, tmp_path, workers=workers, batch_size=50)["train"]
    assert codes.manifest["channels"] == "mean_std"
    images = torch.stack([source.train[i]["image"] for i in range(4)])
    with torch.no_grad():
        mean = tokenizer.encode(images)
        deviation = tokenizer.moments(images)[..., mean.shape[-1] :]
    for i in range(4):
        assert torch.allclose(codes[i]["codes"], mean[i], atol=2e-3)
        drawn = torch.stack([codes[SampleRequest(i, seed)]["codes"] for seed in range(400)])
        assert torch.allclose(drawn.mean(0), mean[i], atol=float(deviation[i].max()) / 4)
        assert torch.allclose(drawn.std(0), deviation[i], rtol=0.2)
    means = write_codes(tokenizer, source, tmp_path / "means", moments=False)["train"]
    assert means.manifest["channels"] == "codes"
    assert torch.equal(means[SampleRequest(0, 1)]["codes"], means[SampleRequest(0, 2)]["codes"])


def test_codes_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    source, larger = digits(image_size=16), digits(image_size=20)
    tokenizer = build(preset("tokenizer", "tiny_vq"), image_size=16).eval()
    read = {}
    for workers in (0, 3):
        read[workers] = write_codes(
            tokenizer, source, tmp_path / str(workers), views="ten_crop", larger=larger,
            workers=workers, batch_size=70, shard_size=500,
        )["train"]  # fmt: skip
    assert len(read[0].views) == 10
    assert "ten crops of 20x20" in read[0].manifest["transform"]
    assert torch.equal(read[0].every_view(), read[3].every_view())
    with pytest.raises(UserError, match="more pixels"):
        write_codes(tokenizer, source, tmp_path / "x", views="ten_crop")
