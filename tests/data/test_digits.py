import sys

import pytest
import torch

from argen.data.digits import digits
from argen.errors import UserError


def test_digits():
    source = digits()
    assert source.train.images.shape == (1618, 3, 8, 8)
    assert len(source.val) == 179
    assert all(17 <= n <= 18 for n in source.counts()["val"].values())
    assert not set(source.train.names) & set(source.val.names)
    assert source.train.images.max() == 255
    first = source.train if "digit-0000" in source.train.names else source.val
    assert source.classes[int(first.labels[first.names.index("digit-0000")])] == "zero"
    assert torch.equal(digits().val.labels, source.val.labels)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        digits()
