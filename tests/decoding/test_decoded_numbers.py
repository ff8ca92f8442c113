"""An image with a NaN in it is never handed out."""

import pytest
import torch

from argen.errors import UserError
from argen.pipeline.pipeline import require_numbers


def test_a_nan_anywhere_is_an_error():
    images = torch.zeros(3, 3, 4, 4)
    assert require_numbers(images) is images
    images[1, 2, 3, 0] = float("nan")
    with pytest.raises(UserError, match="1 of 3"):
        require_numbers(images)
