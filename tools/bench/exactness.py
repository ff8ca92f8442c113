"""How far a strategy's images are from the model's own distribution, where that can be summed."""

from __future__ import annotations

import copy

import torch

from argen.decoding.base import Decoder
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.speculative.acceptance import GroupRejection
from argen.decoding.speculative.lookahead import LookAhead
from argen.testing.enumeration import enumerate_decoder
from argen.testing.table import Table

CODES, VOCABULARY = 2, 24


def exactness_of(decoder: Decoder) -> str:
    """Return `exact`; else the total variation of a toy's images, or `not exact`.

    The toy is a random table of distributions of two codes, on which look-ahead strategies are
    followed by enumeration. It has no embeddings, so look-alikes are told by probability alone.
    """
    if decoder.exact:
        return "exact"
    if not isinstance(decoder, LookAhead):
        return "not exact"
    toy, mine = Table.random(length=CODES, vocab=VOCABULARY), copy.deepcopy(decoder)
    mine.window = CODES
    if isinstance(mine.acceptance, GroupRejection):
        mine.acceptance.d_threshold = float("inf")
    cond = toy.conditioner(torch.tensor([0]))
    found = enumerate_decoder(mine, toy, cond, guidance=Guidance(), filters=Filters()).joint
    first, second = (torch.softmax(table.detach()[0], dim=-1) for table in toy.head.tables)
    expected = (first[0, :, None] * second).flatten()
    return f"TV {float((found - expected).abs().sum() / 2):.2g} (toy)"
