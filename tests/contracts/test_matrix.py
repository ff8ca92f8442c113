"""Every tokenizer with every generator: they train and draw together, or one refuses by name.

Which presets fit each other is asked of every pair, on no device. Training and drawing need one
pair of each class: what a generator takes and how it draws, what the codes are made of, both read
off the networks. `FULL=1` trains every pair.
"""

from functools import cache

import pytest
import torch
from shipped import (
    accepting_decoder,
    condition,
    generator_config,
    meta_tokenizer,
    partner,
    shared_tokenizer,
    tiny,
    tokenizer_spec,
)

from argen.build import build, locate
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
        guidance=Guidance(),
        filters=Filters(),
        noise=SeededNoise(range(ROWS)),
    ).codes


def codes_class(tokenizer_name):
    """Return what a generator can tell tokenizers apart by, sizes aside."""
    tokenizer = meta_tokenizer(tokenizer_name)
    spec = tokenizer.spec
    return (
        spec.kind,
        "scales" if len(spec.segments) > 1 else "grid" if spec.segments[0].shape[0] > 1 else "row",
        spec.kind == "discrete" and spec.sub_tokens > 1,
        spec.kind == "discrete" and len(set(spec.segments[0].vocab_sizes)) > 1,
        tokenizer.spatial,
    )


@cache
def on_no_device(name, tokenizer_name):
    """Build a pair without memory for its weights; return the generator, or the refusal."""
    try:
        with torch.device("meta"):
            generator = build(generator_config(name, tokenizer_name))
            generator.bind(meta_tokenizer(tokenizer_name))
    except IncompatibleError as error:
        return error
    return generator


def cheapest(names, weight, group):
    """Return the lightest name of every group, as {group: name}."""
    found = {}
    for name in sorted(names, key=weight):
        found.setdefault(group(name), name)
    return found


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@cache
def codes_of_each_class():
    """Return {class of codes: its lightest tokenizer preset}."""
    return cheapest(tiny("tokenizer"), lambda name: parameters(meta_tokenizer(name)), codes_class)


def accepted(name):
    """Return the classes of codes that a generator preset takes."""
    pairs = {codes: on_no_device(name, other) for codes, other in codes_of_each_class().items()}
    return frozenset(c for c, made in pairs.items() if not isinstance(made, IncompatibleError))


def generator_class(name):
    """Return what tokenizers can tell generators apart by: codes taken, and how they are drawn."""
    takes = accepted(name)
    if not takes:
        return name
    generator = on_no_device(name, codes_of_each_class()[min(takes)])
    plan = generator.plan
    return (
        takes,
        plan.lookahead,
        plan.any_order,
        plan.permutable,
        any(len(group) > 1 for group in plan.groups),
        type(generator.conditioner),
        reads_tokenizer(name),
    )


def one_of_each():
    """Return pairs of presets: each class of generators with each class of codes it takes."""
    generators = cheapest(
        tiny("generator"),
        lambda name: parameters(on_no_device(name, partner(name))),
        generator_class,
    )
    tokenizers = codes_of_each_class()
    return sorted(
        (name, tokenizers[codes]) for name in generators.values() for codes in accepted(name)
    )


def says_why(refusal):
    text = str(refusal)
    assert len(text) > 40
    assert "\n" not in text


@pytest.mark.parametrize("name", tiny("generator"))
def test_takes_codes_or_says_why_not(name):
    results = [on_no_device(name, other) for other in tiny("tokenizer")]
    for result in results:
        if isinstance(result, IncompatibleError):
            says_why(result)
    assert any(isinstance(result, Generator) for result in results)


def test_one_pair_of_each_class_trains_and_draws():
    # Finding the classes builds every pair: once, and not in each process that collects tests.
    pairs, failed = one_of_each(), {}
    for name, tokenizer_name in pairs:
        try:
            trains_and_draws(trained(name, tokenizer_name), tokenizer_name)
        except Exception as error:
            failed[name, tokenizer_name] = error
    assert not failed, failed
    # Every kind of codes is among them.
    kinds = {codes[:3] for codes in codes_of_each_class()}
    assert {codes_class(tokenizer_name)[:3] for _, tokenizer_name in pairs} == kinds


@pytest.mark.full
@pytest.mark.parametrize("tokenizer_name", tiny("tokenizer"))
@pytest.mark.parametrize("name", tiny("generator"))
def test_fits_or_says_why(name, tokenizer_name):
    result = trained(name, representative(name, tokenizer_name))
    if isinstance(result, IncompatibleError):
        says_why(result)
    else:
        trains_and_draws(result, tokenizer_name)


def trains_and_draws(result, tokenizer_name):
    assert isinstance(result, torch.Tensor), result
    tokenizer = shared_tokenizer(tokenizer_name)
    tokenizer.spec.check(result)
    with torch.no_grad():
        images = tokenizer.decode(result)
    assert images.shape == (ROWS, 3, *tokenizer.image_size)
    assert images.isfinite().all()
