"""The order of labels: balanced in every run of images, so that the inception score is right."""

from __future__ import annotations

import math

import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from argen.evaluation.collected import Collected
from argen.evaluation.distances import inception_score, sorted_by_class
from argen.evaluation.feature_metrics import feature_metrics
from argen.evaluation.label_order import balanced_labels, spread_order
from argen.evaluation.protocol import Protocol
from argen.evaluation.reference import Reference
from argen.evaluation.statistics import GaussianStatistics
from argen.pretrained.base import FeatureExtractor
from argen.recipes.captions import evaluation_prompts

CLASSES, MARGIN = 20, 8.0


def logits_of(labels: torch.Tensor) -> torch.Tensor:
    """Return what a classifier says that gives each label's own class MARGIN nats more."""
    return MARGIN * torch.nn.functional.one_hot(labels, CLASSES).float()


def expected_score() -> float:
    """Return exp(I(image; class)) of that classifier under equally frequent classes."""
    right = math.exp(MARGIN) / (math.exp(MARGIN) + CLASSES - 1)
    wrong = (1 - right) / (CLASSES - 1)
    entropy = -right * math.log(right) - (CLASSES - 1) * wrong * math.log(wrong)
    return CLASSES * math.exp(-entropy)


@pytest.fixture(scope="module")
def pipe():
    from argen.build import build
    from argen.pipeline import Pipeline
    from argen.runtime.presets import for_codes, preset

    tokenizer = build(preset("tokenizer", "tiny_vq")).eval()
    config = for_codes(preset("generator", "tiny_gpt"), tokenizer.spec, num_classes=CLASSES)
    return Pipeline(tokenizer=tokenizer, generator=build(config).eval())


def test_inception_score_of_the_order_in_which_a_model_is_scored(pipe) -> None:
    _, labels = evaluation_prompts(pipe, None, 5000)
    assert labels.bincount(minlength=CLASSES).tolist() == [250] * CLASSES
    own, spread = inception_score(logits_of(labels), splits=10)
    assert own == pytest.approx(expected_score(), rel=1e-3)
    shuffled = isc_features_to_metric(logits_of(labels), splits=10, shuffle=True)
    # Random splits of n = 500 miss exp(-(K - 1) / 2n) of the balance, 1.9 %; equal ones miss none.
    assert own == pytest.approx(shuffled["inception_score_mean"], rel=0.03)
    assert spread < 0.01
    # The order by class, which would be scored a tenth: what this is about.
    by_class = labels.sort().values
    assert inception_score(logits_of(by_class), splits=10)[0] < expected_score() / 8


@pytest.mark.parametrize(("count", "classes"), [(50_000, 1000), (1000, 9), (64, 1), (7, 1000)])
def test_every_run_of_images_is_balanced(count: int, classes: int) -> None:
    labels = balanced_labels(count, classes)
    counts = labels.bincount(minlength=classes)
    assert len(labels) == count
    assert int(counts.max()) - int(counts.min()) <= 1
    for start in (0, count // 10, count // 3):
        part = labels[start : start + count // 10].bincount(minlength=classes)
        assert int(part.max()) - int(part.min()) <= 2


def test_a_few_images_of_many_classes_are_spread_over_all_of_them() -> None:
    labels = balanced_labels(10, 1000)
    assert sorted(labels.tolist()) == [100 * i for i in range(10)]


@pytest.mark.parametrize("count", [1, 2, 3, 6, 10, 144, 999, 5000])
def test_spread_order_is_a_permutation_whose_runs_are_spread(count: int) -> None:
    order = spread_order(count)
    assert sorted(order.tolist()) == list(range(count))
    # Ten blocks of neighbours, such as classes of a sorted list: each run has its share of each.
    run = order[count // 4 : count // 4 + count // 2]
    blocks = (run * 10 // count).bincount(minlength=10)
    assert count < 100 or int(blocks.max()) - int(blocks.min()) <= 3


def test_an_order_by_class_is_seen_and_a_random_one_is_not() -> None:
    labels = balanced_labels(2000, CLASSES)
    noisy = logits_of(labels) + torch.randn(2000, CLASSES, generator=torch.manual_seed(0))
    assert not sorted_by_class(noisy, splits=10)
    for seed in range(5):
        order = torch.randperm(2000, generator=torch.Generator().manual_seed(seed))
        assert not sorted_by_class(noisy[order], splits=10)
    assert sorted_by_class(noisy[labels.argsort(stable=True)], splits=10)
    assert not sorted_by_class(noisy[:15], splits=10)


class Known(FeatureExtractor):
    """Gives an image's class, which its first pixel holds, as features and as logits."""

    name, dim = "known", 4

    def __call__(self, images_B3HW: torch.Tensor) -> dict[str, torch.Tensor]:
        labels = images_B3HW[:, 0, 0, 0].long()
        pool = torch.stack([labels, labels**2 % 7, labels % 3, labels % 5], 1).float()
        return {"pool": pool, "logits_unbiased": logits_of(labels)}

    def feature_dim(self, name: str) -> int:
        return 4

    def protocol(self) -> dict[str, str]:
        return {"name": "known", "sha256": ""}


def test_foreign_images_sorted_by_class_are_shuffled_and_it_is_said() -> None:
    protocol = Protocol(
        name="x", title="x", key="x", label="x", samples=2000, least=2, extractor="known", size=1,
        metrics=("inception_score",), reference="given",
    )  # fmt: skip
    scores = {}
    for name, labels in (
        ("mixed", balanced_labels(2000, CLASSES)),
        ("sorted", balanced_labels(2000, CLASSES).sort().values),
    ):
        collected = Collected(Known(), keep={"logits_unbiased"})
        pixels = labels.view(-1, 1, 1, 1).expand(-1, 3, 1, 1).to(torch.uint8)
        collected.update(Known()(pixels), torch.arange(2000))
        collected.all_reduce()
        reference = Reference("r", GaussianStatistics(4), {}, 0, "")
        notes: list[str] = []
        numbers = feature_metrics(protocol, collected, reference, {}, notes)
        scores[name] = numbers["inception_score"], notes
    assert scores["mixed"][1] == []
    assert "sorted by class" in scores["sorted"][1][0]
    assert scores["mixed"][0] == pytest.approx(expected_score(), rel=1e-3)
    # Random splits of n = 200 miss exp(-(K - 1) / 2n) of the balance, 4.6 %.
    random_splits = expected_score() * math.exp(-(CLASSES - 1) / 400)
    assert scores["sorted"][0] == pytest.approx(random_splits, rel=0.02)
