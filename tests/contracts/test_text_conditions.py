"""Every tiny generator also reads text: it trains, is guided, and does not see the padding."""

import pytest
import torch
from shipped import (
    accepting_decoder,
    condition,
    generator_config,
    partner,
    perturbed,
    random_codes,
    shared_tokenizer,
    tiny,
    tokenizer_spec,
)

from argen.build import build
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.generators.conditioning import TextConditioner
from argen.layers.noise import SeededNoise
from argen.runtime.presets import for_codes, preset
from argen.text.features import TextFeatures

LENGTH, WIDTH, ROWS = 6, 16, 4
TEXT = {
    "_target_": "argen.generators.conditioning.TextConditioner",
    "feature_dim": WIDTH,
    "length": LENGTH,
    "drop_rate": 0.1,
}


def make(name):
    """Build a preset with a text conditioner in place of its own."""
    tokenizer = partner(name)
    config = generator_config(name, tokenizer)
    config["conditioner"] = TEXT | {"dim": config["conditioner"].get("dim", config.get("dim"))}
    if "buffer" in config:
        config["buffer"] = LENGTH
    torch.manual_seed(0)
    generator = build(config)
    generator.bind(shared_tokenizer(tokenizer))
    return perturbed(generator).eval()


def loss(generator, codes, text):
    """Return the loss of each position or the mean, with the same draws every time."""
    torch.manual_seed(3)
    output = generator.loss(codes, generator.conditioner(text))
    return output.loss if output.nll is None else output.nll


@pytest.mark.parametrize("name", tiny("generator"))
def test_any_generator_reads_text(name):
    generator = make(name)
    codes, cond = random_codes(generator.spec, ROWS), condition(generator, ROWS)
    generator.loss(codes, cond).loss.backward()
    assert not [key for key, weight in generator.named_parameters() if weight.grad is None]

    drawn = accepting_decoder(generator)(
        generator,
        cond,
        SamplingContext(
            guidance=Guidance(scale=2.0),
            filters=Filters(),
            noise=SeededNoise(list(range(ROWS))),
        ),
    )
    generator.spec.check(drawn.codes)


@pytest.mark.parametrize("name", tiny("generator"))
def test_text_is_read_and_its_padding_is_not(name):
    generator = make(name)
    codes = random_codes(generator.spec, ROWS)
    mask = torch.arange(LENGTH) >= torch.arange(ROWS)[:, None]
    draws = torch.Generator().manual_seed(0)
    features, others = (torch.randn(ROWS, LENGTH, WIDTH, generator=draws) for _ in range(2))
    valid = mask[..., None]
    with torch.inference_mode():
        plain = loss(generator, codes, TextFeatures(features, mask))
        padded = loss(generator, codes, TextFeatures(torch.where(valid, features, others), mask))
        worded = loss(generator, codes, TextFeatures(torch.where(valid, others, features), mask))
    assert torch.allclose(plain, padded, atol=1e-5)
    assert not torch.allclose(plain, worded, atol=1e-4)


def test_a_preset_for_text_remembers_what_made_the_features():
    spec = {"name": "n", "fingerprint": "f", "dim": WIDTH, "length": LENGTH, "padding": "left"}
    codes = tokenizer_spec(partner("tiny_text"))
    generator = build(for_codes(preset("generator", "tiny_text"), codes, text=spec))
    assert isinstance(generator.conditioner, TextConditioner)
    assert generator.conditioner.text.to_dict() == spec
    assert build(generator.config).conditioner.text == generator.conditioner.text
    assert "text" not in for_codes(preset("generator", "tiny_gpt"), codes, text=spec)["conditioner"]
