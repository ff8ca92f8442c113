"""Products of a few rows, written out for the compiler."""

from __future__ import annotations

import pytest
import torch

from argen.layers.few_rows import MOST_ROWS, product


@pytest.mark.parametrize("rows", [1, 2, MOST_ROWS])
def test_a_few_rows_sum_to_the_product(rows: int) -> None:
    x, weight = torch.randn(rows, 64).bfloat16(), torch.randn(48, 64).bfloat16()
    found = product(x, weight.t())
    expected = (x.double() @ weight.double().t()).bfloat16()
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-2)


def test_other_products_are_left_to_the_library() -> None:
    weight = torch.randn(48, 64)
    assert product(torch.randn(1, 64), weight.t()) is NotImplemented
    assert product(torch.randn(MOST_ROWS + 1, 64).half(), weight.half().t()) is NotImplemented
