from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from argen.build import build
from argen.errors import UserError
from argen.runtime.presets import config_dir, preset, preset_names
from argen.training.optim import Optim


def rates(steps, **options):
    optim = Optim(**options)
    return [optim.factor(step, 100) for step in steps]


def test_the_peak_is_held_between_warm_up_and_fall():
    options = {"schedule": "linear", "warmup": 10, "hold": 20, "min_lr_ratio": 0.1}
    found = rates((0, 9, 10, 29, 30, 65, 99), **options)
    assert found == pytest.approx([0.1, 1, 1, 1, 1, 0.55, 0.1 + 0.9 / 70])
    assert rates((99,), schedule="cosine", warmup=10, hold=90) == [1.0]


def test_multistep_falls_at_milestones():
    found = rates(
        (0, 49, 50, 74, 75, 99), schedule="multistep", warmup=0, milestones=[0.5, 0.75], gamma=0.2
    )
    assert found == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])
    with pytest.raises(UserError, match="needs milestones"):
        Optim(schedule="multistep")


def test_shares_are_steps_of_the_run():
    shares, steps = Optim(warmup=0.1, hold=0.2), Optim(warmup=50, hold=100)
    assert shares.spans(500) == steps.spans(500) == (50, 150)
    assert [shares.factor(i, 500) for i in range(500)] == [steps.factor(i, 500) for i in range(500)]
    assert shares.spans(5000) == (500, 1500)


@pytest.mark.parametrize("value", [-1, 1.5, -0.2, True])
def test_lengths_that_make_no_sense_are_refused(value):
    with pytest.raises(UserError, match="number of steps"):
        Optim(warmup=value)


def test_a_warm_up_beyond_the_end_is_refused(caplog):
    optim = Optim(warmup=62_500)
    with pytest.raises(UserError, match=r"8% of optim.lr.*optim.warmup=0.02"):
        optim.check(5000)
    with pytest.raises(UserError, match="take 5001 steps"):
        Optim(warmup=1000, hold=4001).check(5000)
    Optim(warmup=1000, hold=4000).check(5000)
    assert not caplog.records
    optim.check(40)  # a trial of the machinery
    assert "taken for a trial" in caplog.text


def test_old_argument_names_are_built_with_a_warning():
    config = {"_target_": "argen.training.optim.Optim", "stair": 0.2, "plateau": 7, "final": 0.3}
    with pytest.warns(DeprecationWarning, match="is now") as told:
        old = build(config, trust=True)
    assert (old.gamma, old.hold, old.min_lr_ratio) == (0.2, 7, 0.3)
    said = " ".join(str(one.message) for one in told)
    assert all(f"is now {name};" in said for name in ("hold", "gamma", "min_lr_ratio"))


@pytest.mark.parametrize("name", preset_names("optim"))
def test_every_recipe_stays_between_nothing_and_its_peak(name):
    optim = build(preset("optim", name), trust=True)
    factors = [optim.factor(step, 400_000) for step in range(0, 400_001, 50)]
    assert max(factors) == pytest.approx(1.0, abs=1e-3)
    assert min(factors) >= 0
    # Shares, not steps: recipes reach their rate in runs of any length.
    optim.check(100)
    if name != "adamw":
        assert max(optim.factor(step, 2000) for step in range(2000)) == 1.0


def test_every_recipe_names_all_settings():
    from dataclasses import fields

    for name in preset_names("optim"):
        assert set(preset("optim", name)) - {"_target_"} == {f.name for f in fields(Optim)}, name
        assert (config_dir() / "optim" / f"{name}.yaml").read_text().startswith("# ")


class Small(nn.Module):
    no_decay = ("places",)

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.places = nn.Parameter(torch.randn(3, 4))
        self.first = nn.Linear(4, 4)
        self.conv = nn.Conv1d(4, 4, 3)

    def forward(self, ids):
        return self.conv((self.first(self.table(ids)) + self.places).mT).square().sum()


def small():
    torch.manual_seed(0)
    return Small()


def trained(optim, steps=6):
    network = small()
    optimizer = optim.make_optimizer(network)
    scheduler = optim.make_scheduler(optimizer, steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.tensor([[0, 1, 4]])).backward()
        optimizer.step()
        scheduler.step()
    return network, optimizer, scheduler


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_adamw_is_that_of_torch_with_its_groups():
    optim = Optim(lr=0.01, warmup=0, schedule="constant", weight_decay=0.1, decay_embeddings=False)
    found, *_ = trained(optim)
    network = small()
    decayed = [network.first.weight, network.conv.weight]
    plain = [p for p in network.parameters() if all(p is not one for one in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for _ in range(6):
        theirs.zero_grad()
        network(torch.tensor([[0, 1, 4]])).backward()
        theirs.step()
    assert torch.equal(weights(found), weights(network))


class Halving(torch.optim.Optimizer):
    """A user's own: halves every weight; takes no rate."""

    def __init__(self, params, factor=0.5):
        super().__init__(params, {"lr": 0.0})
        self.factor = factor

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(self.factor)


def test_any_class_can_be_named():
    own = {"_target_": f"{__name__}.Halving", "factor": 0.25}
    config = preset("optim", "adamw") | {"optimizer": own, "weight_decay": 0.0, "warmup": 0}
    optim = build(config, trust=True)
    network, optimizer, _ = trained(optim, steps=2)
    assert isinstance(optimizer, Halving)
    assert torch.allclose(weights(network), weights(small()) / 16)
    with pytest.raises(UserError, match="no weight decay of its own"):
        build({**config, "weight_decay": 0.1}, trust=True).make_optimizer(small())
    with pytest.raises(UserError, match="unexpected keyword"):
        build({**config, "optimizer": {**own, "nothing": 1}}, trust=True).make_optimizer(small())


@pytest.mark.parametrize(
    ("target", "more"),
    [("SGD", {"momentum": 0.9}), ("Adafactor", {}), ("NAdam", {}), ("RMSprop", {"alpha": 0.9})],
)
def test_classes_of_torch(target, more):
    optim = Optim(
        lr=0.01,
        warmup=2,
        optimizer={"_target_": f"torch.optim.{target}", "_partial_": True, **more},
    )
    network, optimizer, _ = trained(optim)
    assert type(optimizer) is getattr(torch.optim, target)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert all(
        group[key] == value for group in optimizer.param_groups for key, value in more.items()
    )
    assert torch.isfinite(weights(network)).all()
    assert not torch.equal(weights(network), weights(small()))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_takes_the_matrices_and_adamw_the_rest():
    optim = build(
        preset("optim", "muon") | {"lr": 0.01, "schedule": "constant", "warmup": 2}, trust=True
    )
    network, optimizer, scheduler = trained(optim, steps=8)
    matrices, rest = optimizer.parts
    assert type(matrices) is torch.optim.Muon
    assert type(rest) is torch.optim.AdamW
    assert [p for g in matrices.param_groups for p in g["params"]] == [network.first.weight]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(network.parameters()))
    assert {g["lr"] for g in optimizer.param_groups} == {scheduler.get_last_lr()[0]}
    # A run that goes on from a saved state takes the steps of one that never stopped.
    state, at = (
        deepcopy(optimizer.state_dict()),
        {k: v.clone() for k, v in network.state_dict().items()},
    )
    again = small()
    again.load_state_dict(at)
    other = optim.make_optimizer(again)
    other.load_state_dict(state)
    for parameter, its in other.state.items():  # as Lightning does on resume
        other.state[parameter] = dict(its)
    assert len(other.parts[0].state) == 1
    for one, taking in ((network, optimizer), (again, other)):
        taking.zero_grad()
        one(torch.tensor([[0, 1, 4]])).backward()
        taking.step()
    assert torch.equal(weights(network), weights(again))
    assert not torch.equal(weights(network), torch.cat([v.flatten() for v in at.values()]))
    with pytest.raises(ValueError, match="other optimisers"):
        other.load_state_dict(rest.state_dict())


def test_schedulers_of_torch():
    given = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.5, "total_steps": 11}
    optim = Optim(lr=0.01, scheduler=given)
    optim.check(50)  # the warm-up of 100 steps is not used
    _, optimizer, scheduler = trained(optim, steps=10)
    assert type(scheduler) is torch.optim.lr_scheduler.OneCycleLR
    assert optimizer.param_groups[0]["lr"] < 0.01
    plateau = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau"}
    with pytest.raises(UserError, match="waits for a score"):
        trained(Optim(scheduler=plateau))
    with pytest.raises(UserError, match="no scheduler of torch"):
        trained(Optim(scheduler={"_target_": "builtins.id"}))


def test_weight_decay_rises_along_half_a_cosine():
    optim = Optim(weight_decay=0.05, weight_decay_end=0.08, schedule="constant", warmup=0)
    network = small()
    optimizer = optim.make_optimizer(network)
    scheduler = optim.make_scheduler(optimizer, steps=11)
    seen = []
    for _ in range(11):
        seen.append([group["weight_decay"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    expected = 0.08 - 0.03 * (0.5 + 0.5 * np.cos(np.pi * np.arange(11) / 10))
    assert [one for one, _ in seen] == pytest.approx(expected.tolist())
    assert {zero for _, zero in seen} == {0.0}
    assert "_decay" not in scheduler.state_dict()
    with pytest.raises(UserError, match="leave out"):
        Optim(weight_decay_end=0.1, scheduler={"_target_": "torch.optim.lr_scheduler.ConstantLR"})
