"""Every preset composes, can be built, and says where it comes from."""

import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from shipped import fitted, meta_tokenizer

from argen.build import META
from argen.generators.base import Generator
from argen.runtime.presets import config_dir, preset, preset_names
from argen.tokenizers.base import Tokenizer

GROUPS = ("tokenizer", "generator")
ALL = [(group, name) for group in GROUPS for name in preset_names(group)]
# Presets that reproduce nothing published: for tests and for the bundled experiments.
OWN = ("tiny_", "small_", "quickstart_", "emoji_")
PUBLISHED = [(group, name) for group, name in ALL if not name.startswith(OWN)]


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


@pytest.mark.parametrize(("group", "name"), PUBLISHED)
def test_says_where_it_comes_from(group, name):
    meta = preset(group, name).get(META, {})
    assert {"source", "licence_code", "licence_weights", "expected"} <= set(meta)
    assert re.match(r"https://", meta["source"])
    assert meta["licence_code"]
    assert meta["licence_weights"]
    assert isinstance(meta["expected"], list)
    comment = (config_dir() / group / f"{name}.yaml").read_text().splitlines()[0]
    assert comment.startswith("# ")


def test_published_presets_exist():
    assert len(PUBLISHED) >= 2
