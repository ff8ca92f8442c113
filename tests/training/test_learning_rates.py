import pytest

from argen.build import build
from argen.errors import UserError
from argen.runtime.presets import config_dir, preset_names
from argen.training.optim import Optim


def rates(steps, **options):
    optim = Optim(**options)
    return [optim.factor(step, 100) for step in steps]


def test_plateau_stands_between_warm_up_and_fall():
    found = rates((0, 9, 10, 29, 30, 65, 99), schedule="linear", warmup=10, plateau=20, final=0.1)
    assert found == pytest.approx([0.1, 1, 1, 1, 1, 0.55, 0.1 + 0.9 / 70])
    assert rates((99,), schedule="cosine", warmup=10, plateau=90) == [1.0]


def test_stairs_fall_at_milestones():
    found = rates(
        (0, 49, 50, 74, 75, 99), schedule="stairs", warmup=0, milestones=[0.5, 0.75], stair=0.2
    )
    assert found == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])
    with pytest.raises(UserError, match="needs milestones"):
        Optim(schedule="stairs")


@pytest.mark.parametrize("name", preset_names("optim"))
def test_every_recipe_stays_between_nothing_and_its_peak(name):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        optim = build(dict(compose(f"optim/{name}").optim))
    factors = [optim.factor(step, 400_000) for step in range(0, 400_001, 50)]
    assert max(factors) == pytest.approx(1.0, abs=1e-3)
    assert min(factors) >= 0
