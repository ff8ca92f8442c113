"""A tokenizer declares the options it takes by writing them; one place checks them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from argen.errors import UserError
from argen.spec import CodeSpec, Segment
from argen.tokenizers.base import Tokenizer, TokenizerOutput


class Iterative(Tokenizer):
    """Codes are the sign of each image's mean; images are refined step by step."""

    image_size, factor = (4, 4), 4

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))

    @property
    def spec(self):
        return CodeSpec("discrete", (Segment((1, 1), vocab_sizes=(2,)),))

    def _encode(self, images, *, text=None):
        shift = 0.0 if text is None else text
        return (images.mean((1, 2, 3)) + shift > 0).long()[:, None]

    def _decode(self, codes, *, steps=1, guidance=1.0):
        signs = (2 * codes - 1).view(-1, 1, 1, 1).float().expand(-1, 3, 4, 4)
        return signs * self.level * guidance * (1 - 0.5**steps)

    def forward(self, images, *, noise=None):
        return TokenizerOutput(self.decode(self.encode(images)))


def test_options_of_an_iterative_decoder():
    model, images = Iterative(), torch.full((2, 3, 4, 4), -0.25)
    assert (model.encode_options, model.decode_options) == (("text",), ("steps", "guidance"))
    assert model.encode(images).tolist() == [[0], [0]]
    codes = model.encode(images, text=0.5)
    assert codes.tolist() == [[1], [1]]
    assert model.decode(codes).unique().tolist() == [0.25]
    assert model.decode(codes, steps=2, guidance=2.0).unique().tolist() == [0.75]


def test_what_it_does_not_take_is_refused_before_anything_runs():
    model = Iterative()
    wanted = "Iterative cannot decode with step=; it takes steps, guidance: .*Did you mean 'steps'"
    with pytest.raises(UserError, match=wanted):
        model.decode(torch.full((1, 7), 9), step=2)
    with pytest.raises(UserError, match="cannot encode with noise=; it takes text"):
        model.encode(torch.zeros(1, 3, 4, 4), noise=object())
    with pytest.raises(UserError, match="Iterative decodes codes alone"):
        model.decode_latents(torch.zeros(1, 1))
