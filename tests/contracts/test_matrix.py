"""Every tokenizer with every generator: they train and draw together, or one refuses by name."""

from functools import cache

import pytest
import torch
from shipped import (
    accepting_decoder,
    condition,
    generator_config,
    shared_tokenizer,
    tiny,
    tokenizer_spec,
)

from argen.build import build, locate
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.errors import IncompatibleError
from argen.generators.base import Generator
from argen.layers.noise import SeededNoise
from argen.runtime.presets import preset

ROWS = 2


def reads_tokenizer(name):
    """Say whether a generator preset takes part of its tokenizer, and not only its codes."""
    return locate(preset("generator", name)["_target_"]).bind is not Generator.bind


def representative(name, tokenizer_name):
    """Return the first tokenizer that is the same to a generator.

    Where only the codes' spec matters, equal specs need one training run.
    """
    if reads_tokenizer(name):
        return tokenizer_name
    spec = tokenizer_spec(tokenizer_name)
    return next(other for other in tiny("tokenizer") if tokenizer_spec(other) == spec)


@cache
def trained(name, tokenizer_name):
    """Train two steps and draw; return codes, or the refusal."""
    torch.manual_seed(0)
    tokenizer = shared_tokenizer(tokenizer_name)
    try:
        generator = build(generator_config(name, tokenizer_name))
        generator.bind(tokenizer)
    except IncompatibleError as error:
        return error
    height, width = tokenizer.image_size
    images = torch.rand(ROWS, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        codes = tokenizer.encode(images)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-3)
    for _ in range(2):
        loss = generator.loss(codes, condition(generator, ROWS)).loss
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    generator.eval()
    return accepting_decoder(generator)(
        generator,
        condition(generator, ROWS),
        SamplingContext(
            guidance=Guidance(),
            filters=Filters(),
            noise=SeededNoise(range(ROWS)),
        ),
    ).codes


@pytest.mark.parametrize("tokenizer_name", tiny("tokenizer"))
@pytest.mark.parametrize("name", tiny("generator"))
def test_fits_or_says_why(name, tokenizer_name):
    result = trained(name, representative(name, tokenizer_name))
    if isinstance(result, IncompatibleError):
        text = str(result)
        assert len(text) > 40
        assert "\n" not in text
        return
    tokenizer = shared_tokenizer(tokenizer_name)
    tokenizer.spec.check(result)
    with torch.no_grad():
        images = tokenizer.decode(result)
    assert images.shape == (ROWS, 3, *tokenizer.image_size)
    assert images.isfinite().all()


def test_every_generator_has_a_tokenizer():
    for name in tiny("generator"):
        results = [trained(name, representative(name, other)) for other in tiny("tokenizer")]
        assert any(isinstance(result, torch.Tensor) for result in results), name
