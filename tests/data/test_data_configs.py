import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_method, instantiate
from omegaconf import MissingMandatoryValue

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml"))
OWN = {
    "folder": "path",
    "imagenet": "path",
    "unlabelled": "path",
    "webdataset": "urls",
}  # images of the user's: where they are


def composed(name):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(overrides=[f"+data={name}"]).data


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_shown(name):
    config = composed(name)
    signature = inspect.signature(get_method(config._target_))
    assert set(config) - {"_target_"} == set(signature.parameters)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OWN])
def test_instantiates(name):
    source = instantiate(composed(name), _convert_="all")
    assert len(source.train) > len(source.val) > 0
    size = source.image_size
    assert source.val[0]["image"].shape == (3, *size)


@pytest.mark.parametrize(("name", "key"), OWN.items())
def test_your_own_images_have_to_be_named(name, key):
    with pytest.raises(MissingMandatoryValue):
        _ = composed(name)[key]
