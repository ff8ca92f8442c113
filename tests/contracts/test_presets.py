"""Every preset composes, can be built, and says where it comes from."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from shipped import fitted, meta_tokenizer

from argen.generators.base import Generator
from argen.runtime.presets import config_dir, preset, preset_names
from argen.tokenizers.base import Tokenizer

GROUPS = ("tokenizer", "generator")
ALL = [(group, name) for group in GROUPS for name in preset_names(group)]


@pytest.fixture(scope="module")
def composer():
    """Return Hydra's compose, set up once."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield compose


@pytest.mark.parametrize(("group", "name"), ALL)
def test_composes(composer, group, name):
    node = composer(overrides=[f"+{group}={name}"])[group]
    assert OmegaConf.to_container(node, resolve=True) == preset(group, name)


@pytest.mark.parametrize("name", preset_names("tokenizer"))
def test_tokenizer_is_built(name):
    tokenizer = meta_tokenizer(name)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.spec.length > 0
    assert all(parameter.is_meta for parameter in tokenizer.parameters())


@pytest.mark.parametrize("name", preset_names("generator"))
def test_generator_is_built(name):
    _, generator = fitted(name)
    assert isinstance(generator, Generator)
    generator.plan.check(generator.spec)
    assert all(parameter.is_meta for parameter in generator.parameters())
