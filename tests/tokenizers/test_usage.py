"""Usage statistics against hand counts."""

import math

import pytest
import torch

from argen.errors import UserError
from argen.spec import CodeSpec, Segment
from argen.tokenizers.usage import CodeUsage, perplexity, usage


def plain(vocab=8, shape=(2, 2)):
    return CodeSpec("discrete", (Segment(shape, vocab_sizes=(vocab,)),))


def test_plain_codes_over_several_batches():
    meter = CodeUsage(plain())
    meter.update(torch.tensor([[0, 0, 1, 1]]))
    meter.update(torch.tensor([[[2, 2], [3, 3]], [[0, 1], [2, 3]]]))
    found = meter.compute()
    assert found == {
        "images": 3.0,
        "usage": 0.5,
        "perplexity": pytest.approx(4.0),
        "perplexity_share": pytest.approx(0.5),
    }
    meter.reset()
    assert meter.compute()["usage"] == 0.0


def test_counts_alone():
    counts = torch.tensor([[1, 1, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]])
    assert usage(counts).tolist() == [0.5, 0.25, 0.0]
    torch.testing.assert_close(perplexity(counts), torch.tensor([2.0, 1.0, 1.0]).double())


def test_sub_tokens_are_counted_apart_and_dropped_levels_left_out():
    spec = CodeSpec("discrete", (Segment((1, 2), vocab_sizes=(2, 4)),))
    meter = CodeUsage(spec)
    meter.update(torch.tensor([[[0, 3], [1, -1]], [[0, 3], [1, 2]]]))
    found = meter.compute()
    assert found["usage/0"] == 1.0
    assert found["usage/1"] == 0.5
    assert found["usage"] == 0.75
    assert found["perplexity/1"] == pytest.approx(math.exp(math.log(3) - 2 / 3 * math.log(2)))


def test_scales_are_counted_apart():
    spec = CodeSpec("discrete", (Segment((1, 1), (4,)), Segment((2, 2), (4,))))
    meter = CodeUsage(spec)
    meter.update(torch.tensor([[0, 0, 1, 2, 3]]))
    found = meter.compute()
    assert (found["usage/0"], found["usage/1"], found["usage"]) == (0.25, 1.0, 0.625)


def test_positions_bound_the_information_in_a_image():
    meter = CodeUsage(plain(4, (1, 3)), positions=True)
    meter.update(torch.tensor([[0, 1, 2], [1, 1, 3], [2, 1, 2], [3, 1, 3]]))
    found = meter.compute()
    assert found["bits_per_image"] == pytest.approx(2.0 + 0.0 + 1.0)
    assert found["usage"] == 1.0


def test_bits():
    meter = CodeUsage(CodeSpec("binary", (Segment((1, 2), bits=3),)))
    meter.update(torch.tensor([[[0, 1, 1], [1, 1, 0]], [[0, 1, 1], [0, 1, 1]]]))
    found = meter.compute()
    assert found["usage"] == pytest.approx(2 / 3)
    quarter = 0.25 * 2 + 0.75 * math.log2(4 / 3)
    assert found["entropy_bits"] == pytest.approx(2 * quarter / 3)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(UserError, match="Continuous"):
        CodeUsage(CodeSpec("continuous", (Segment((1, 1), dim=2),)))
    with pytest.raises(UserError, match="too large"):
        CodeUsage(plain(2**40))
    with pytest.raises(UserError, match="do not fit"):
        CodeUsage(CodeSpec("discrete", (Segment((1, 2), vocab_sizes=(2, 4)),))).update(
            torch.zeros(2, 2, 3, dtype=torch.long)
        )
