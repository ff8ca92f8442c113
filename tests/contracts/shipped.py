"""What the contract tests run over: every preset of a config group, built small and repeatable."""

import importlib
import inspect
import pkgutil
from functools import cache

import torch

import argen.decoding
from argen.build import build
from argen.decoding.base import Decoder
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.conditioning import ClassConditioner, TextConditioner
from argen.runtime.presets import for_codes, preset, preset_names
from argen.text.features import TextFeatures
from argen.tokenizers.base import Tokenizer
from argen.zoo.meta import card
from argen.zoo.pairs import network_of

CLASSES = 10


def tiny(group):
    return [name for name in preset_names(group) if name.startswith("tiny_")]


def perturbed(module, scale=0.05):
    """Move every parameter off its start: zero-initialised heads and gates would hide faults."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draws))
    return module


@cache
def meta_tokenizer(name) -> Tokenizer:
    """Return a preset's network without memory for its weights."""
    with torch.device("meta"):
        return build(preset("tokenizer", name))


def tokenizer_spec(name):
    """Return the codes of a preset."""
    return meta_tokenizer(name).spec


def make_tokenizer(name, *, seed=0) -> Tokenizer:
    torch.manual_seed(seed)
    return build(preset("tokenizer", name)).eval()


@cache
def shared_tokenizer(name) -> Tokenizer:
    """Return one instance for tests that only read it."""
    return make_tokenizer(name)


def generator_config(name, tokenizer_name, **conditioner):
    """Return a generator preset fitted to a tokenizer preset's codes."""
    spec = tokenizer_spec(tokenizer_name)
    config = for_codes(preset("generator", name), spec, num_classes=CLASSES)
    if conditioner:
        config["conditioner"] = {**config["conditioner"], **conditioner}
    return config


def make_generator(name, tokenizer_name, *, seed=0, **conditioner) -> Generator:
    """Build a generator bound to its tokenizer, in eval mode, off its initial weights."""
    torch.manual_seed(seed)
    generator = build(generator_config(name, tokenizer_name, **conditioner))
    generator.bind(shared_tokenizer(tokenizer_name))
    return perturbed(generator).eval()


@cache
def fitted(name, tokenizers=None):
    """Return a tokenizer preset that a generator preset accepts, and the generator on no device.

    That is the one that a published preset names, else the first that fits; `tokenizers` limits
    the search to those presets.
    """
    meta = card("generator", name)
    if meta is not None and tokenizers is None:
        return meta.tokenizer, network_of("generator", name)
    refusals = []
    for other in tokenizers or preset_names("tokenizer"):
        try:
            with torch.device("meta"):
                generator = build(generator_config(name, other))
                generator.bind(meta_tokenizer(other))
        except UserError as error:
            refusals.append(f"{other}: {error}")
        else:
            return other, generator
    raise AssertionError(f"No tokenizer preset fits generator={name}.\n" + "\n".join(refusals))


def partner(name):
    """Return the first tiny tokenizer preset whose codes a generator preset accepts."""
    return fitted(name, tuple(tiny("tokenizer")))[0]


def condition(generator, rows, *, seed=0):
    """Return the conditions of `rows` samples, all different."""
    conditioner, device = generator.conditioner, next(generator.parameters()).device
    if isinstance(conditioner, ClassConditioner):
        return conditioner(torch.arange(rows, device=device) % conditioner.num_classes)
    if isinstance(conditioner, TextConditioner):
        draws = torch.Generator().manual_seed(seed)
        shape = (rows, conditioner.length, conditioner.feature_dim)
        # Texts of different lengths, padded on the left; one has no word at all.
        padding = torch.arange(rows)[:, None] % (conditioner.length + 1)
        mask = torch.arange(conditioner.length) >= padding
        features = torch.randn(shape, generator=draws) * mask[..., None]
        return conditioner(TextFeatures(features, mask).to(device))
    raise AssertionError(f"Say here what {type(conditioner).__name__} is conditioned on.")


def random_codes(spec, rows, *, seed=0):
    """Return codes drawn evenly from what a spec allows."""
    draws = torch.Generator().manual_seed(seed)
    if spec.kind == "continuous":
        return torch.randn(spec.code_shape(rows), generator=draws)
    parts = []
    for segment in spec.segments:
        shape = (rows, segment.length)
        if spec.kind == "binary":
            parts.append(torch.randint(2, (*shape, segment.bits), generator=draws))
            continue
        columns = [torch.randint(v, shape, generator=draws) for v in segment.vocab_sizes]
        parts.append(columns[0] if len(columns) == 1 else torch.stack(columns, dim=-1))
    return torch.cat(parts, dim=1)


def decoders():
    """Give every strategy that can be made without arguments, the plain ones first."""
    plain = ("sequential", "masked")
    for name in sorted(preset_names("decoder"), key=lambda name: name not in plain):
        yield build(preset("decoder", name))
    modules = [module.name for module in pkgutil.iter_modules(argen.decoding.__path__)]
    for module in sorted(modules, key=lambda name: name not in plain):
        found = vars(importlib.import_module(f"argen.decoding.{module}")).values()
        for kind in found:
            if not inspect.isclass(kind) or not issubclass(kind, Decoder):
                continue
            arguments = inspect.signature(kind).parameters.values()
            optional = all(a.default is not a.empty or "VAR" in a.kind.name for a in arguments)
            if optional and not inspect.isabstract(kind):
                yield kind()


def accepting_decoder(generator):
    """Return the first strategy that drives a generator."""
    refusals = []
    for decoder in decoders():
        try:
            decoder.check(generator)
        except IncompatibleError as error:
            refusals.append(str(error))
        else:
            return decoder
    raise AssertionError(
        f"No decoder drives {type(generator).__name__}:\n" + "\n".join(dict.fromkeys(refusals))
    )
