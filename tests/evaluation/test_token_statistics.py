"""Statistics of codes against laws whose numbers are known."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from argen.data.codes import CodeWriter
from argen.errors import UserError
from argen.evaluation.code_stats.classes import class_divergence
from argen.evaluation.code_stats.compressibility import adaptive_bits, compressibility
from argen.evaluation.code_stats.dependence import neighbour_information, ngrams
from argen.evaluation.code_stats.information import (
    entropy_bits,
    jensen_shannon,
    miller_madow,
    mutual_information,
)
from argen.evaluation.code_stats.page import write_page
from argen.evaluation.code_stats.report import token_statistics
from argen.evaluation.code_stats.words import joint_ids
from argen.evaluation.code_stats.zipf import innovation, zipf_fit
from argen.spec import CodeSpec, Segment


def test_entropy_of_known_laws() -> None:
    assert entropy_bits(np.array([5, 5, 5, 5])) == pytest.approx(2.0)
    assert entropy_bits(np.array([7, 0])) == 0
    assert entropy_bits(np.array([1, 3])) == pytest.approx(2 - 0.75 * math.log2(3))


def test_the_correction_takes_most_of_the_bias_away() -> None:
    rng = np.random.default_rng(0)
    counts = np.stack([np.bincount(rng.integers(0, 64, 640), minlength=64) for _ in range(50)])
    plain = np.mean([entropy_bits(row) for row in counts])
    corrected = np.mean([entropy_bits(row) + miller_madow(row) for row in counts])
    assert 6 - plain > 0.05
    assert abs(6 - corrected) < 0.01


def test_mutual_information_of_known_laws() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 4, 100_000)
    assert mutual_information(first, first) == pytest.approx(2, abs=1e-3)
    assert mutual_information(first, rng.integers(0, 4, 100_000)) < 1e-3
    # A symmetric channel with error 0.1 tells 1 - H(0.1) bits.
    bit = rng.integers(0, 2, 100_000)
    heard = np.where(rng.random(100_000) < 0.1, 1 - bit, bit)
    told = 1 + 0.1 * math.log2(0.1) + 0.9 * math.log2(0.9)
    assert mutual_information(bit, heard) == pytest.approx(told, abs=0.01)


def test_jensen_shannon_at_its_ends_and_between() -> None:
    assert jensen_shannon(np.array([4, 4]), np.array([1, 1])) == 0
    assert jensen_shannon(np.array([4, 0]), np.array([0, 9])) == pytest.approx(1)
    p, q = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    middle = (p + q) / 2
    by_hand = 0.5 * (p * np.log2(p / middle)).sum() + 0.5 * math.log2(1 / 0.75)
    assert jensen_shannon(p, q) == pytest.approx(by_hand)


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.1, 1.5])
def test_zipf_finds_the_exponent(exponent: float) -> None:
    weights = np.arange(1, 501.0) ** -exponent
    counts = np.random.default_rng(0).multinomial(2_000_000, weights / weights.sum())
    found = zipf_fit(counts)
    assert found["exponent"] == pytest.approx(exponent, abs=0.02)
    assert found["misfit"] < 0.01
    assert found["least_squares_exponent"] == pytest.approx(exponent, abs=0.05)


def test_zipf_says_when_it_does_not_fit() -> None:
    assert zipf_fit(np.array([1000] * 10 + [1] * 990))["misfit"] > 0.1
    assert zipf_fit(np.array([5]))["exponent"] is None


def test_innovation_of_images_that_share_nothing_and_everything() -> None:
    apart = innovation(np.arange(400).reshape(100, 4))
    assert apart["words"][-1] == 400
    assert apart["heaps_exponent"] == pytest.approx(1)
    assert apart["last_tenth_new_per_image"] == pytest.approx(4)
    same = innovation(np.tile(np.arange(4), (100, 1)))
    assert (same["first_image"], same["last_tenth_new_per_image"]) == (4, 0)
    assert same["heaps_exponent"] == pytest.approx(0)


def test_neighbours_that_know_nothing_or_all() -> None:
    rng = np.random.default_rng(0)
    for row in neighbour_information(rng.integers(0, 32, (300, 8, 8))):
        assert row["bits"] > 0.02  # what too few counts alone make
        assert abs(row["corrected_bits"]) < 0.01
    # Constant rows: a code knows its right neighbour and nothing of the one below.
    rows = np.repeat(rng.integers(0, 8, (400, 8, 1)), 8, axis=2)
    for row in neighbour_information(rows):
        known = 3 if row["direction"] == "right" else 0
        assert row["corrected_bits"] == pytest.approx(known, abs=0.03)


def test_place_alone_is_told_apart_from_the_image() -> None:
    # The code depends on its column only, so another image's neighbour tells as much.
    ids = np.broadcast_to(np.arange(8) // 2, (50, 8, 8))
    right = neighbour_information(ids)[0]
    assert right["position_bits"] == pytest.approx(right["bits"])
    assert right["bits"] - right["chance_bits"] > 1


def test_ngrams_of_a_chain() -> None:
    # A chain that keeps its state with probability 0.9 and else takes the other one.
    rng = np.random.default_rng(0)
    chain = (np.cumsum(rng.random((500, 64)) < 0.1, axis=1) + rng.integers(0, 2, (500, 1))) % 2
    rate = -0.1 * math.log2(0.1) - 0.9 * math.log2(0.9)
    one, two, three = ngrams(chain)
    assert one["conditional_bits"] == pytest.approx(1, abs=0.01)
    for row in (two, three):
        assert row["conditional_bits"] == pytest.approx(rate, abs=0.02)
        assert row["shuffled_conditional_bits"] == pytest.approx(1, abs=0.01)


def test_compression_beside_its_bounds() -> None:
    rng = np.random.default_rng(0)
    random = compressibility(rng.integers(0, 256, (500, 64)), 8.0)
    assert random["zlib"] >= random["unigram_entropy"] > 7.9
    assert random["adaptive_unigram"] > random["unigram_entropy"]
    repeated = compressibility(np.tile(rng.integers(0, 256, (1, 64)), (500, 1)), 8.0)
    assert repeated["lzma"] < 0.2 < repeated["unigram_entropy"]
    assert repeated["shuffled_lzma"] > 5


def test_adaptive_coding_equals_coding_step_by_step() -> None:
    codes = [0, 2, 2, 1, 2, 0, 2]
    seen, bits = [0, 0, 0, 0], 0.0
    for done, code in enumerate(codes):
        bits -= math.log2((seen[code] + 0.5) / (done + 2))
        seen[code] += 1
    assert adaptive_bits(np.array([2, 1, 4]), 2.0) == pytest.approx(bits / len(codes))
    assert adaptive_bits(np.array([2, 1, 4]), 192.0) is None


def test_classes_with_codes_of_their_own() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    apart = class_divergence(
        rng.integers(0, 8, (200, 16)) + 8 * labels[:, None], labels, ("a", "b")
    )
    assert apart is not None
    assert apart["information_bits"] == pytest.approx(1)
    assert [row["bits"] for row in apart["classes"]] == pytest.approx([1, 1])
    assert apart["pairwise_bits"][0] == pytest.approx([0, 1])
    alike = class_divergence(rng.integers(0, 8, (200, 16)), labels, ("a", "b"))
    assert alike is not None
    assert alike["information_bits"] < 0.01
    assert class_divergence(np.zeros((4, 2), int), np.zeros(4, int), ("a",)) is None


def test_joint_numbers_of_any_width() -> None:
    rng = np.random.default_rng(0)
    parts = rng.integers(0, 2, (40, 3, 192))
    parts[20:] = parts[:20]
    ids = joint_ids(parts)
    assert (ids[20:] == ids[:20]).all()
    assert ids.max() + 1 == len(np.unique(parts.reshape(-1, 192), axis=0))
    assert joint_ids(np.array([[1, 0], [0, 5], [1, 0]])).tolist() == [1, 0, 1]


SPECS = {
    "plain": CodeSpec("discrete", (Segment((4, 4), (16,), dim=3),)),
    "pyramid": CodeSpec("discrete", tuple(Segment((s, s), (16,), dim=3) for s in (1, 2, 4))),
    "parts": CodeSpec("discrete", (Segment((4, 4), (4, 8), dim=3),)),
    "bits": CodeSpec("binary", (Segment((1, 8), bits=80),)),
    "floats": CodeSpec("continuous", (Segment((4, 4), dim=3),)),
}


def written(spec: CodeSpec, path, count: int = 40):
    codes_shape, random = spec.code_shape(count), torch.Generator().manual_seed(0)
    if spec.kind == "continuous":
        codes = torch.randn(codes_shape, generator=random)
    else:
        sizes = torch.tensor(spec.segments[0].vocab_sizes or (2,))
        if len(sizes) == 1:
            codes = torch.randint(0, int(sizes), codes_shape, generator=random)
        else:
            codes = (torch.rand(codes_shape, generator=random) * sizes).long()
    writer = CodeWriter(
        path, spec=spec, tokenizer_fingerprint="0" * 16, classes=("a", "b"), transform="none",
        views=["plain"], num_items=count,
    )  # fmt: skip
    labels = torch.arange(count) % 2
    writer.write(writer.missing()[0], codes[:, None], labels, torch.arange(count))
    writer.finish()
    return codes


@pytest.mark.parametrize("kind", ["plain", "pyramid", "parts", "bits"])
def test_a_page_and_numbers_of_every_kind(kind: str, tmp_path) -> None:
    spec = SPECS[kind]
    codes = written(spec, tmp_path / "codes" / "train")
    found = token_statistics(tmp_path / "codes")
    json.dumps(found, allow_nan=False)
    rows = codes.reshape(40 * spec.length, -1)
    assert found["unigram"]["distinct"] == len(rows.unique(dim=0))
    assert len(found["positions"]["entropy_bits"]) == spec.length
    assert len(found["segments"]) == len(spec.segments)
    if kind == "bits":
        assert found["unigram"]["vocabulary"] is None
        assert len(found["parts"]["entropy_bits"]) == 80
        assert min(found["parts"]["entropy_bits"]) > 0.95
    write_page(tmp_path / "page.png", found)
    with Image.open(tmp_path / "page.png") as page:
        assert page.format == "PNG"
        assert page.width > 1000
        assert len(set(page.convert("L").resize((100, 100)).tobytes())) > 20


def test_fewer_images_are_spread_evenly(tmp_path) -> None:
    written(SPECS["plain"], tmp_path)
    found = token_statistics(tmp_path, max_images=20)
    assert (found["images"], found["of_images"]) == (20, 40)


def test_what_is_refused(tmp_path) -> None:
    written(SPECS["floats"], tmp_path / "floats")
    with pytest.raises(UserError, match="no vocabulary"):
        token_statistics(tmp_path / "floats")
    with pytest.raises(UserError, match="no codes"):
        token_statistics(tmp_path / "nothing")
    written(SPECS["plain"], tmp_path / "plain")
    with pytest.raises(UserError, match="at least 2"):
        token_statistics(tmp_path / "plain", max_images=1)
