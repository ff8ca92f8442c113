"""Pixel, class and code metrics on cases whose answer is known."""

import math

import pytest
import torch

from argen.errors import SpecError, UserError
from argen.evaluation.metrics import (
    class_agreement,
    code_usage,
    duplicates,
    near_copies,
    nearest_rmse,
    psnr_db,
    unigram_entropy_bits,
)
from argen.spec import CodeSpec, Segment


def test_psnr_of_a_known_error():
    x = torch.zeros(2, 3, 8, 8)
    y = x.clone()
    y[0] += 0.2  # MSE 0.04 against a peak of 2: 20 dB
    y[1] += 0.02  # 40 dB
    assert psnr_db(x, y) == pytest.approx(30.0, abs=1e-4)
    assert psnr_db(torch.full_like(x, 5.0), torch.ones_like(x)) > 100
    with pytest.raises(UserError, match="pairs"):
        psnr_db(x, y[:1])


def test_class_agreement_counts_the_nearest_centroid():
    train = torch.tensor([[0.0, 0], [0, 2], [10, 0], [10, 2]])
    labels = torch.tensor([3, 3, 7, 7])
    made = torch.tensor([[1.0, 1], [9, 1], [4.9, 1], [5.1, 1]])
    assert class_agreement(made, torch.tensor([3, 7, 3, 7]), train, labels) == 1.0
    assert class_agreement(made, torch.tensor([3, 7, 7, 7]), train, labels) == 0.75
    with pytest.raises(UserError, match=r"\[5\]"):
        class_agreement(made, torch.tensor([3, 7, 5, 7]), train, labels)


def test_nearest_rmse_equals_all_pairs():
    torch.manual_seed(0)
    made, real = torch.rand(23, 3, 6, 6) * 2 - 1, torch.rand(31, 3, 6, 6) * 2 - 1
    pairs = (made[:, None] - real[None]).square().mean((2, 3, 4)).sqrt() / 2
    expected = pairs.min(1).values
    torch.testing.assert_close(nearest_rmse(made, real, chunk=7), expected)
    torch.testing.assert_close(nearest_rmse(made, real.split(10), chunk=8), expected)


def test_near_copies_at_the_threshold():
    torch.manual_seed(0)
    real = torch.rand(40, 3, 8, 8) * 1.6 - 0.8
    made = torch.cat([real[:3] + 0.098, real[3:7] + 0.102, torch.rand(3, 3, 8, 8) * 2 - 1])
    assert near_copies(made, real) == pytest.approx(0.3)
    assert near_copies(made, real, threshold=0.052) == pytest.approx(0.7)
    with pytest.raises(UserError, match="one size"):
        near_copies(made, torch.zeros(2, 3, 4, 4))
    with pytest.raises(UserError, match="no reference"):
        near_copies(made, [])


def test_duplicates_are_equal_8_bit_images():
    torch.manual_seed(0)
    images = torch.rand(6, 3, 8, 8) * 1.8 - 0.9
    images[4] = images[1]
    images[5] = images[1].mul(127.5).add(127.5).round().sub(127.5).div(127.5)
    assert duplicates(images) == 2
    images[5, 0, 0, 0] += 2 / 255
    assert duplicates(images) == 1


def test_code_usage_of_each_kind_of_code():
    plain = CodeSpec("discrete", (Segment((1, 4), (8,)),))
    assert code_usage(torch.tensor([[0, 0, 3, 7], [3, 3, 3, 3]]), plain) == 3 / 8
    pair = CodeSpec("discrete", (Segment((1, 2), (2, 4)),))
    assert code_usage(torch.tensor([[[0, 1], [1, 1]]]), pair) == pytest.approx((1 + 0.25) / 2)
    pyramid = CodeSpec("discrete", (Segment((1, 1), (4,)), Segment((1, 2), (4,))))
    assert code_usage(torch.tensor([[0, 1, 2]]), pyramid) == 0.75
    bits = CodeSpec("binary", (Segment((1, 2), bits=3),))
    assert code_usage(torch.tensor([[[0, 0, 1], [1, 0, 1]]]), bits) == 2 / 8
    with pytest.raises(SpecError, match="outside the vocabulary"):
        code_usage(torch.tensor([[0, 0, 3, 8]]), plain)


def test_unigram_entropy():
    assert unigram_entropy_bits(torch.arange(16).reshape(2, 8), 16) == pytest.approx(4.0)
    assert unigram_entropy_bits(torch.zeros(2, 8, dtype=torch.long), 16) == 0.0
    skewed = torch.tensor([0, 0, 0, 1])
    expected = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert unigram_entropy_bits(skewed, 512) == pytest.approx(expected)
    pairs = torch.stack([torch.arange(8) % 2, torch.arange(8) % 4], -1)[None]
    assert unigram_entropy_bits(pairs, (2, 4)) == pytest.approx(3.0)
    with pytest.raises(UserError, match="outside"):
        unigram_entropy_bits(skewed, 1)
