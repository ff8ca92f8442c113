"""Streaming statistics and the Fréchet distance, against closed forms and independent code."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from argen.errors import UserError
from argen.evaluation.statistics import GaussianStatistics, frechet_distance


def features(n: int, d: int, *, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + shift


def test_moments_equal_numpys_in_any_batching():
    data = features(101, 7, seed=0, shift=1000.0)
    streamed = GaussianStatistics(7)
    for part in data.split(13):
        streamed.update(part)
    assert streamed.count == 101
    np.testing.assert_allclose(streamed.mean, data.mean(0), rtol=1e-14)
    np.testing.assert_allclose(streamed.covariance, np.cov(data, rowvar=False), rtol=1e-10)


def test_merging_is_like_seeing_everything():
    data = features(60, 5, seed=1, shift=-30.0)
    left, right = GaussianStatistics.of(data[:23]), GaussianStatistics.of(data[23:])
    merged = GaussianStatistics(5).merge(left).merge(right)
    whole = GaussianStatistics.of(data)
    assert merged.count == 60
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-11, atol=1e-12)


def test_files_bring_back_the_same_distance(tmp_path):
    a, b = (GaussianStatistics.of(features(50, 6, seed=s)) for s in (2, 3))
    a.save(tmp_path / "a.npz")
    loaded = GaussianStatistics.load(tmp_path / "a.npz")
    assert loaded.count == 50
    assert frechet_distance(loaded, b) == pytest.approx(frechet_distance(a, b), rel=1e-12)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    (tmp_path / "half.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    with pytest.raises(UserError, match=r"half\.npz is not a readable"):
        GaussianStatistics.load(tmp_path / "half.npz")


def test_closed_form_for_commuting_covariances():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))[0]
    va, vb = torch.rand(9, dtype=torch.float64) + 0.1, torch.rand(9, dtype=torch.float64) * 3
    gap = torch.randn(9, dtype=torch.float64)
    a = GaussianStatistics.from_moments(torch.zeros(9), basis * va @ basis.T, count=1000)
    b = GaussianStatistics.from_moments(gap, basis * vb @ basis.T, count=10)
    expected = float(gap.square().sum() + (va.sqrt() - vb.sqrt()).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_closed_form_when_covariances_are_rank_deficient():
    # Variances that live on directions 0-3 and 2-5 of 200: only 2 and 3 overlap.
    torch.manual_seed(1)
    basis = torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64))[0]
    va, vb = torch.zeros(200, dtype=torch.float64), torch.zeros(200, dtype=torch.float64)
    va[:4], vb[2:6] = torch.tensor([1.0, 2, 3, 4]), torch.tensor([5.0, 6, 7, 8])
    a = GaussianStatistics.from_moments(torch.zeros(200), basis * va @ basis.T, count=5)
    b = GaussianStatistics.from_moments(torch.zeros(200), basis * vb @ basis.T, count=5)
    expected = 10 + 26 - 2 * (math.sqrt(3 * 5) + math.sqrt(4 * 6))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("images", [20, 64, 300])
def test_no_distance_to_itself(images):
    data = features(images, 64, seed=4)
    same = frechet_distance(GaussianStatistics.of(data), GaussianStatistics.of(data))
    assert 0 <= same < 1e-9
    moved = GaussianStatistics.of(data + 0.5)
    assert frechet_distance(GaussianStatistics.of(data), moved) == pytest.approx(16, rel=1e-9)


@pytest.mark.parametrize(("n", "tolerance"), [(400, 1e-8), (20, 1e-5)])
def test_torch_fidelity_agrees(n, tolerance):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = features(n, 32, seed=5), features(n, 32, seed=6, shift=0.3)
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(a), fid_features_to_statistics(b), verbose=False
    )["frechet_inception_distance"]
    ours = frechet_distance(GaussianStatistics.of(a), GaussianStatistics.of(b))
    assert ours == pytest.approx(theirs, rel=tolerance)


def test_bad_features_are_refused():
    statistics = GaussianStatistics(3)
    with pytest.raises(UserError, match="not finite"):
        statistics.update(torch.full((2, 3), math.nan))
    with pytest.raises(UserError, match="width 3"):
        statistics.update(torch.zeros(2, 4))
    statistics.update(torch.zeros(1, 3))
    with pytest.raises(UserError, match="at least 2"):
        _ = statistics.covariance
    with pytest.raises(UserError, match="another extractor"):
        frechet_distance(GaussianStatistics(3), GaussianStatistics(4))


def reduce_on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    data = features(50, 8, seed=7, shift=100.0)
    # Uneven shares: 50 images as 18 and 32.
    own = data[:18] if rank == 0 else data[18:]
    GaussianStatistics.of(own).all_reduce().save(f"{folder}/{rank}.npz")
    dist.destroy_process_group()


def test_two_ranks_give_the_statistics_of_one(tmp_path):
    mp.spawn(reduce_on_rank, args=(str(tmp_path),), nprocs=2)
    whole = GaussianStatistics.of(features(50, 8, seed=7, shift=100.0))
    for rank in range(2):
        found = GaussianStatistics.load(tmp_path / f"{rank}.npz")
        assert found.count == 50
        torch.testing.assert_close(found.mean, whole.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(found.covariance, whole.covariance, rtol=1e-10, atol=1e-12)
