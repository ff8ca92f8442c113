"""Scoring end to end on small images with the real network."""

import json
from dataclasses import replace

import pytest
import torch

from argen.data.images import ImageSource, MemoryImages
from argen.errors import UserError
from argen.evaluation.metrics import class_agreement, near_copies
from argen.evaluation.protocol import Protocol
from argen.evaluation.reference import Reference
from argen.evaluation.reference_making import reference_from_source
from argen.evaluation.report import evaluate, summary
from argen.evaluation.score import score_samples
from argen.evaluation.statistics import GaussianStatistics, frechet_distance
from argen.images.pixels import to_float
from argen.pretrained.features import EfficientNetLite0Features

COLOURS = torch.tensor([[230, 30, 30], [30, 30, 230]])


def blobs(n: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy uint8 images whose class is their colour, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    noise = torch.randint(-25, 26, (n, 3, 16, 16), generator=generator)
    return (COLOURS[labels][:, :, None, None] + noise).clamp(0, 255).to(torch.uint8), labels


@pytest.fixture(scope="module")
def source():
    images, labels = blobs(24, seed=0)
    names = [str(i) for i in range(24)]
    train = MemoryImages(images, labels, names)
    return ImageSource("blobs", ("red", "blue"), (16, 16), train, train)


@pytest.fixture(scope="module")
def extractor():
    return EfficientNetLite0Features(size=32)


@pytest.fixture(scope="module")
def protocol():
    return replace(Protocol.load("fd_lite"), samples=16, least=12, size=32)


@pytest.fixture(scope="module")
def cheap(protocol):
    """The same without the distance, whose decompositions take most of a test's time."""
    return replace(protocol, metrics=("class_agreement", "near_copies", "duplicates"))


@pytest.fixture(scope="module")
def reference(source, extractor):
    return reference_from_source(source, extractor)


def test_numbers_are_those_of_the_parts(source, extractor, protocol):
    pixels, labels = blobs(16, seed=1)
    result = score_samples(to_float(pixels), labels, source, protocol, extractor=extractor)
    made, real = extractor.extract(pixels), extractor.extract(source.train.images)
    expected = frechet_distance(GaussianStatistics.of(made), GaussianStatistics.of(real))
    assert result["fd_lite"] == pytest.approx(expected, rel=1e-4)
    assert result["class_agreement"] == class_agreement(made, labels, real, source.train.labels)
    assert result["class_agreement"] == 1.0
    assert result["near_copies"] == near_copies(pixels, source.train.images)
    assert result["duplicates"] == 0
    assert (result["comparable"], result["score_name"], result["samples"]) == (True, "fd_lite", 16)
    assert result["protocol"]["hash"] == protocol.hash()
    assert result["extractor"]["sha256"] == extractor.sha256


def test_batches_give_what_one_tensor_gives(source, extractor, protocol):
    pixels, labels = blobs(16, seed=1)
    whole = score_samples(pixels, labels, source, protocol, extractor=extractor)
    parts = score_samples(
        iter(pixels.split(5)), labels, source, protocol, extractor=extractor, batch_size=3
    )
    assert parts["fd_lite"] == pytest.approx(whole["fd_lite"], rel=1e-4)
    assert {**parts, "fd_lite": 0} == {**whole, "fd_lite": 0}


def test_worse_images_score_worse(source, extractor, protocol, cheap):
    pixels, labels = blobs(16, seed=1)
    options = {"extractor": extractor}
    good = score_samples(pixels, labels, source, protocol, **options)
    inverted = score_samples(255 - pixels, labels, source, protocol, **options)
    assert inverted["fd_lite"] > 2 * good["fd_lite"]
    swapped = score_samples(pixels, labels.flip(0), source, cheap, **options)
    assert swapped["class_agreement"] == 0.0
    copied = score_samples(source.train.images[:16], labels, source, cheap, **options)
    assert copied["near_copies"] == 1.0
    given = score_samples(pixels, labels, source, cheap, copies_of=255 - pixels, **options)
    assert (given["near_copies"], given["near_copies_of"]) == (0.0, "images given")


def test_every_deviation_is_named(source, extractor, reference, cheap):
    options = {"extractor": extractor, "reference": reference}

    def score(n, protocol=cheap, **changes):
        pixels, labels = blobs(n, seed=1)
        return score_samples(
            pixels,
            **{"labels": labels, "source": source, "protocol": protocol, **options} | changes,
        )

    few = score(14)
    assert few["not_comparable_because"] == ["14 samples instead of 16"]
    assert few["score_name"] == "fd_lite-0.014k (not comparable)"
    with pytest.raises(UserError, match="quick=true"):
        score(4)
    quick = score(4, quick=True)
    assert (quick["score_name"], quick["comparable"]) == ("fd_lite-0.004k (quick)", False)

    uneven = score(16, labels=torch.zeros(16, dtype=torch.long))
    assert uneven["not_comparable_because"] == ["labels are not spread evenly over the classes"]
    unknown = score(16, labels=None)
    assert unknown["not_comparable_because"] == ["the labels of the samples are unknown"]
    assert "class_agreement" in unknown["skipped"]
    assert "resized" in score(16, replace(cheap, size=112))["not_comparable_because"][0]
    assert "weights" in score(16, replace(cheap, sha256="abc"))["not_comparable_because"][0]
    assert score(16)["comparable"]


def test_a_stored_reference_gives_the_same_score(
    source, extractor, reference, protocol, cheap, tmp_path
):
    pixels, labels = blobs(16, seed=1)
    reference.save(tmp_path / "r.npz")
    stored = Reference.load(tmp_path / "r.npz")
    live = score_samples(pixels, labels, source, protocol, extractor=extractor)
    options = {"extractor": extractor, "reference": stored}
    cached = score_samples(pixels, labels, source, protocol, **options)
    assert cached["fd_lite"] == pytest.approx(live["fd_lite"], rel=1e-9)
    assert {**cached, "fd_lite": 0} == {**live, "fd_lite": 0}
    alone = score_samples(pixels, labels, None, cheap, **options)
    assert alone["skipped"].keys() == {"near_copies"}
    assert "compared with blobs train 16x16" in alone["not_comparable_because"][0]
    with pytest.raises(UserError, match="make it again"):
        stored.check(EfficientNetLite0Features(size=64))


def test_adm_statistics_are_read(extractor, tmp_path):
    import numpy as np

    path = tmp_path / "adm.npz"
    np.savez(path, mu=np.ones(1280, np.float32), sigma=np.eye(1280))
    reference = Reference.load(path)
    assert torch.equal(reference.statistics.mean, torch.ones(1280, dtype=torch.float64))
    assert torch.equal(reference.statistics.covariance, torch.eye(1280, dtype=torch.float64))
    np.savez(path, arr_0=np.zeros(3))
    with pytest.raises(UserError, match=r"adm\.npz holds \['arr_0'\]"):
        Reference.load(path)


def test_bad_samples_are_refused(source, extractor, cheap, reference):
    protocol = cheap
    pixels, labels = blobs(16, seed=1)
    options = {"extractor": extractor, "reference": reference}
    with pytest.raises(UserError, match="Samples are 8x8, but reference blobs"):
        score_samples(pixels[..., ::2, ::2], labels, source, protocol, **options)
    with pytest.raises(UserError, match=r"Labels \[2\] do not occur"):
        score_samples(pixels, labels + 1, source, protocol, **options)
    with pytest.raises(UserError, match="not finite"):
        score_samples(to_float(pixels) * torch.nan, labels, source, protocol, **options)
    with pytest.raises(UserError, match="16 labels"):
        score_samples([pixels[:14]], labels, source, protocol, **options)
    with pytest.raises(UserError, match="data=NAME"):
        score_samples(pixels, labels, None, protocol, extractor=extractor)


def test_nothing_is_generated_before_the_checks(source):
    def generate():
        raise AssertionError("generated")
        yield

    with pytest.raises(UserError, match=r"fetch_assets\.py inception"):
        evaluate(generate(), protocol="fid", source=source)


def test_the_report_is_complete_json(source, extractor, protocol, tmp_path):
    pixels, labels = blobs(16, seed=1)
    result = evaluate(
        pixels,
        protocol=protocol.to_dict(),
        labels=labels,
        source=source,
        extractor=extractor,
        out=tmp_path / "deep" / "metrics.json",
        about={"seed": 3},
    )
    written = json.loads((tmp_path / "deep" / "metrics.json").read_text())
    assert written == result
    assert written["seed"] == 3
    assert written["versions"]["torch"] == torch.__version__.split("+")[0]
    assert written["wall_seconds"] > 0
    assert summary(result).splitlines()[0].startswith("fd_lite: ")
    assert protocol.hash() in summary(result)
