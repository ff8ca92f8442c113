"""Metrics on features: equal to torch-fidelity's command, and to plain NumPy."""

import numpy as np
import pytest
import torch
from PIL import Image

from argen.errors import UserError
from argen.evaluation.collected import Collected
from argen.evaluation.distances import (
    density_coverage,
    inception_score,
    kernel_distance,
    precision_recall,
)
from argen.evaluation.protocol import Protocol
from argen.evaluation.report import evaluate
from argen.evaluation.statistics import GaussianStatistics, frechet_distance
from argen.pretrained.features import build_extractor

SETTINGS = {
    "name": "small",
    "title": "",
    "key": "fid",
    "label": "FID",
    "samples": 24,
    "least": 20,
    "extractor": "inception_v3_compat",
    "size": 299,
    "labels": "any",
    "reference": "given",
    "metrics": ["frechet", "inception_score", "kid", "precision_recall", "density_coverage"],
    "is_splits": 3,
    "is_shuffle": True,
    "kid_subsets": 5,
    "kid_subset_size": 12,
}


def write_images(folder, seed, n=24, side=24):
    draws = np.random.RandomState(seed)
    folder.mkdir()
    for i in range(n):
        base = draws.randint(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(base).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{i:03d}.png")


def test_all_metrics_are_those_of_torch_fidelitys_command(tmp_path, inception_file):
    from torch_fidelity import calculate_metrics

    write_images(tmp_path / "made", 0)
    write_images(tmp_path / "real", 1)
    theirs = calculate_metrics(
        input1=str(tmp_path / "made"),
        input2=str(tmp_path / "real"),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_file),
        isc_splits=3,
        kid_subsets=5,
        kid_subset_size=12,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        batch_size=8,
    )
    from argen.evaluation.sample_files import open_samples

    made = open_samples(tmp_path / "made")
    ours = evaluate(
        ((images, index) for index, images in made.batches(8)),
        protocol=SETTINGS,
        reference=tmp_path / "real",
        samples=made.count,
        weights_path=inception_file,
    )
    expected = {
        "fid": theirs["frechet_inception_distance"],
        "inception_score": theirs["inception_score_mean"],
        "inception_score_std": theirs["inception_score_std"],
        "kid": theirs["kernel_inception_distance_mean"],
        "kid_std": theirs["kernel_inception_distance_std"],
        "precision": theirs["precision"],
        "recall": theirs["recall"],
    }
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, rel=1e-6, abs=1e-12), name
    assert not ours["skipped"]


def test_spatial_features_are_the_first_channels_of_the_first_branch(inception_file):
    extractor = build_extractor("inception_v3_compat", weights_path=inception_file)
    seen = {}
    extractor.network.Mixed_6d.branch1x1.conv.register_forward_hook(
        lambda module, inputs, output: seen.update(conv=output)
    )
    pixels = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    found = extractor(pixels)["spatial"]
    branch = extractor.network.Mixed_6d.branch1x1
    with torch.inference_mode():
        expected = branch.bn(seen["conv"]).relu()[:, :7].permute(0, 2, 3, 1).reshape(2, -1)
    assert torch.equal(found, expected)
    assert found.shape[1] == extractor.feature_dim("spatial") == 2023


def test_features_of_sixteen_images_are_torch_fidelitys_to_the_bit(inception_file):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    draws = torch.Generator().manual_seed(16)
    pixels = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=draws)
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(inception_file)
    )
    ours = build_extractor("inception_v3_compat", weights_path=inception_file)
    assert torch.equal(ours(pixels)["pool"], theirs(pixels)[0])


def numpy_frechet(a, b):
    def moments(x):
        return x.mean(0), np.cov(x, rowvar=False)

    (mean_a, cov_a), (mean_b, cov_b) = moments(a), moments(b)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov_b @ root)
    gap = ((mean_a - mean_b) ** 2).sum()
    return gap + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(np.maximum(cross, 0)).sum()


def test_spatial_distance_against_numpy():
    class Fake:
        dim, name = 6, "fake"

        def feature_dim(self, name):
            return {"pool": 6, "spatial": 9}[name]

    draws = np.random.RandomState(3)
    a, b = draws.randn(300, 9), draws.randn(200, 9) * 1.5 + 0.2
    sides = []
    for features in (a, b):
        collected = Collected(Fake(), spatial=True)
        for start in range(0, len(features), 64):
            part = torch.from_numpy(features[start : start + 64])
            index = torch.arange(start, start + len(part))
            collected.update({"pool": part[:, :6], "spatial": part}, index)
        sides.append(collected.spatial)
    assert frechet_distance(*sides) == pytest.approx(numpy_frechet(a, b), rel=1e-9)


def numpy_ball_metrics(made, real, k, k_ball):
    def distances(x, y):
        return np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))

    def radius(x, neighbours):
        return np.sort(distances(x, x), axis=1)[:, neighbours]  # 0 is the image itself

    between = distances(made, real)
    precision = (between <= radius(real, k)[None]).any(1).mean()
    recall = (radius(made, k)[None] >= between.T).any(1).mean()
    inside = between < radius(real, k_ball)[None]
    return precision, recall, inside.sum() / (k_ball * len(made)), inside.any(0).mean()


def test_precision_recall_density_coverage_against_numpy():
    draws = np.random.RandomState(5)
    made, real = draws.randn(90, 5) * 1.3, draws.randn(70, 5) + 0.3
    expected = numpy_ball_metrics(made, real, 3, 5)
    a, b = torch.from_numpy(made), torch.from_numpy(real)
    found = precision_recall(a, b) + density_coverage(a, b, chunk=32)
    assert found == pytest.approx(expected, rel=1e-6)


def test_score_of_certain_and_of_equal_predictions():
    certain = torch.eye(10).repeat(20, 1) * 50
    assert inception_score(certain, splits=2)[0] == pytest.approx(10, rel=1e-6)
    assert inception_score(torch.zeros(40, 7), splits=4) == pytest.approx((1.0, 0.0))
    with pytest.raises(UserError, match="as many samples"):
        inception_score(certain[:3], splits=4)


def test_kernel_distance_of_equal_laws_is_about_zero():
    draws = torch.Generator().manual_seed(0)
    a, b = (torch.randn(400, 8, generator=draws) for _ in range(2))
    near, _ = kernel_distance(a, b, subsets=20, subset_size=200)
    far, _ = kernel_distance(a, b + 1, subsets=20, subset_size=200)
    assert abs(near) < 0.05 < 0.5 < far
    with pytest.raises(UserError, match="a subset holds 1000"):
        kernel_distance(a, b)


def test_kept_features_do_not_depend_on_batches():
    class Fake:
        dim, name = 3, "fake"

    features = torch.arange(300.0).view(100, 3)
    chosen = []
    for size in (7, 100):
        collected = Collected(Fake(), keep=("pool",), max_images=20)
        for start in range(0, 100, size):
            part = features[start : start + size]
            collected.update({"pool": part}, torch.arange(start, start + len(part)))
        chosen.append(collected.features("pool"))
    assert torch.equal(*chosen)
    assert chosen[0].shape == (20, 3)
    # Spread over the whole, not the first twenty.
    assert chosen[0][:, 0].max() > 200


def test_hash_knows_what_a_metric_depends_on():
    base = Protocol.from_dict(SETTINGS)
    plain = Protocol.from_dict({**SETTINGS, "metrics": ["frechet"]})
    assert base.hash() != Protocol.from_dict({**SETTINGS, "kid_subsets": 6}).hash()
    other = Protocol.from_dict({**SETTINGS, "metrics": ["frechet"], "kid_subsets": 6})
    assert plain.hash() == other.hash()
    with pytest.raises(UserError, match="reference: originals"):
        Protocol.from_dict({**SETTINGS, "metrics": ["psnr"]})


def test_reference_keeps_what_a_protocol_needs(tmp_path, inception_file):
    from argen.evaluation.reference import Reference
    from argen.evaluation.reference_making import open_reference

    write_images(tmp_path / "real", 1, n=12)
    protocol = Protocol.from_dict(
        {**SETTINGS, "metrics": ["frechet", "sfid", "kid"], "reference_features": 8}
    )
    made = open_reference(tmp_path / "real", protocol, weights_path=inception_file)
    made.save(tmp_path / "real.npz")
    found = Reference.load(tmp_path / "real.npz")
    assert found.features_MD.shape == (8, 2048)
    assert torch.equal(found.features_MD, made.features_MD)
    assert isinstance(found.spatial, GaussianStatistics)
    torch.testing.assert_close(found.spatial.covariance, made.spatial.covariance)
    # ADM's form: statistics, and images for precision and recall.
    pixels = np.stack([np.array(Image.open(p)) for p in sorted((tmp_path / "real").iterdir())])
    np.savez(
        tmp_path / "adm.npz",
        mu=made.statistics.mean.numpy(),
        sigma=made.statistics.covariance.numpy(),
        mu_s=made.spatial.mean.numpy(),
        sigma_s=made.spatial.covariance.numpy(),
        arr_0=pixels,
    )
    adm = open_reference(tmp_path / "adm.npz", protocol, weights_path=inception_file)
    torch.testing.assert_close(adm.features_MD, made.features_MD, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(adm.spatial.covariance, made.spatial.covariance)
