"""RAR: the order is an input, annealed to raster; look-ahead works in any order."""

import pytest
import torch

from argen.build import build
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.errors import IncompatibleError, UserError
from argen.generators import rar
from argen.generators.conditioning import TextFeatures
from argen.layers.noise import SeededNoise
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

GRID = CodeSpec("discrete", (Segment((4, 4), vocab_sizes=(32,)),))
LINE = CodeSpec("discrete", (Segment((1, 6), vocab_sizes=(16,)),))


def make(spec=GRID, **options):
    torch.manual_seed(0)
    config = for_codes({**preset("generator", "tiny_rar"), **options}, spec, num_classes=5)
    model = build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def codes_of(spec, rows=3):
    return torch.randint(spec.vocab_size, (rows, spec.length))


def orders_of(spec, rows=3):
    return torch.stack([torch.randperm(spec.length) for _ in range(rows)])


@pytest.mark.parametrize("spec", [GRID, LINE], ids=["grid", "line"])
@torch.no_grad()
def test_any_order_is_scored_as_it_is_drawn(spec):
    model, codes, orders = make(spec), codes_of(spec), orders_of(spec)
    cond = model.conditioner(torch.tensor([0, 2, 4]))
    forced = model.score(codes, cond, order=orders)
    drawn, expected = codes.gather(1, orders), forced.gather(1, orders[..., None].expand_as(forced))
    state, steps = model.start(cond, order=orders), []
    for step in range(spec.length):
        steps.append(model.predict(state))
        model.commit(state, drawn[:, step : step + 1])
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=1e-4, atol=1e-4)
    # Look-ahead, with rows that keep different numbers of drafts.
    state = model.start(cond, order=orders, longest_draft=3)
    torch.testing.assert_close(
        model.predict(state, drawn[:, :3]), expected[:, :4], rtol=1e-4, atol=1e-4
    )
    counts = torch.tensor([1, 3, 2])
    model.commit(state, drawn[:, :3], counts)
    following = torch.stack([drawn[i, n : n + 2] for i, n in enumerate(counts.tolist())])
    params = model.predict(state, following)
    for i, n in enumerate(counts.tolist()):
        torch.testing.assert_close(params[i], expected[i, n : n + 3], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_order_matters_and_raster_is_the_default():
    model, codes = make(), codes_of(GRID)
    cond = model.conditioner(torch.tensor([0, 2, 4]))
    plain = model.score(codes, cond)
    raster = torch.arange(16)
    assert torch.equal(plain, model.score(codes, cond, order=raster))
    assert not torch.allclose(plain, model.score(codes, cond, order=raster.flip(0)))
    assert torch.equal(model.loss(codes, cond).nll, model.head.loss(plain, codes))


def test_orders_are_annealed_to_raster():
    model, raster = make(), torch.arange(16)

    def shares(progress):
        model.set_progress(progress)
        orders = model.sample_orders(2000, noise=SeededNoise(range(2000)))
        assert torch.equal(orders.sort(-1).values, raster.expand_as(orders))
        return orders, (orders != raster).any(-1).float().mean().item()

    orders, share = shares(0.0)
    assert share > 0.99
    # Every position is equally likely at every step.
    counts = torch.zeros(16, 16).index_put_(
        (raster.expand_as(orders), orders), torch.ones(()), accumulate=True
    )
    assert counts.min() > 60
    assert shares(0.49)[1] > 0.99
    assert abs(shares(0.625)[1] - 0.5) < 0.05
    assert abs(shares(0.7)[1] - 0.2) < 0.05
    assert shares(0.75)[1] == shares(1.0)[1] == 0.0


def test_training_loss_replays_its_draws():
    model = make().train()
    codes, cond = codes_of(GRID), model.conditioner(torch.tensor([0, 2, 4]))
    noise = SeededNoise([1, 2, 3])
    first, again = (model.loss(codes, cond, noise=noise).loss for _ in range(2))
    assert torch.equal(first, again)
    orders = model.sample_orders(3, noise=noise)
    assert torch.equal(first, model.loss(codes, cond, order=orders).loss)
    assert not torch.equal(first, model.loss(codes, cond, noise=SeededNoise([4, 5, 6])).loss)
    model.set_progress(1.0)
    torch.testing.assert_close(
        model.loss(codes, cond, noise=noise).loss, model.eval().loss(codes, cond).loss
    )


def test_power_cosine_guidance_is_rars():
    guidance = Guidance(scale=16.0, schedule="power_cosine", power=2.75)
    assert guidance.weight(0, 256) == 1.0
    assert guidance.weight(255, 256) == pytest.approx(16.0, abs=0.01)
    assert Guidance(scale=4.0, schedule="power_cosine", power=0.0).weight(0, 256) == 4.0


@torch.no_grad()
def test_drawing_in_a_random_order_follows_the_model():
    model, seeds = make(), [5, 6, 7]
    cond = model.conditioner(torch.tensor([0, 2, 4]))
    options = {"guidance": Guidance(), "filters": Filters(), "noise": SeededNoise(seeds)}
    seen = []
    result = Sequential(order="random")(
        model,
        cond,
        SamplingContext(observer=lambda p, codes, params: seen.append((p, params)), **options),
    )
    orders = torch.cat([p for p, _ in seen], dim=1)
    assert torch.equal(orders.sort(-1).values, torch.arange(16).expand(3, 16))
    assert not torch.equal(orders[0], orders[1])
    forced = model.score(result.codes, cond, order=orders)
    drawn = torch.cat([params for _, params in seen], dim=1)
    torch.testing.assert_close(
        drawn, forced.gather(1, orders[..., None].expand_as(forced)), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_text_stands_before_the_codes():
    text = {
        "_target_": "argen.generators.conditioning.TextConditioner",
        "feature_dim": 9,
        "dim": 64,
        "length": 4,
    }
    model, codes, orders = make(conditioner=text), codes_of(GRID, 2), orders_of(GRID, 2)
    features = torch.randn(2, 4, 9)
    mask = torch.tensor([[False, True, True, True], [True, True, True, True]])
    cond = model.conditioner(TextFeatures(features, mask))
    forced = model.score(codes, cond, order=orders)
    drawn, state, steps = codes.gather(1, orders), model.start(cond, order=orders), []
    for step in range(16):
        steps.append(model.predict(state))
        model.commit(state, drawn[:, step : step + 1])
    expected = forced.gather(1, orders[..., None].expand_as(forced))
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=1e-4, atol=1e-4)
    # Padding is not heard.
    features[0, 0] = 5.0
    padded = model.score(codes, model.conditioner(TextFeatures(features, mask)), order=orders)
    torch.testing.assert_close(padded, forced)


def test_bad_orders_and_codes_are_refused():
    model, codes = make(), codes_of(GRID)
    cond = model.conditioner(torch.tensor([0, 2, 4]))
    with pytest.raises(IncompatibleError, match="exactly once"):
        model.score(codes, cond, order=torch.zeros(16, dtype=torch.long))
    with pytest.raises(UserError, match="anneal_start"):
        make(anneal_start=0.8, anneal_end=0.5)
    with pytest.raises(IncompatibleError, match="one id a position"):
        make(CodeSpec("discrete", (Segment((4, 4), vocab_sizes=(8, 8)),)))


@pytest.mark.parametrize("rows_ahead", [1, 3 * 2, 3 * 5, 1000])
@torch.no_grad()
def test_modulations_of_steps_to_come_are_those_of_each_step(rows_ahead, monkeypatch):
    monkeypatch.setattr(rar, "ROWS_AHEAD", rows_ahead)
    model, codes = make(), codes_of(GRID)
    cond = model.conditioner(torch.arange(3))
    expected, state = model.score(codes, cond), model.start(cond)
    for step in range(GRID.length):
        torch.testing.assert_close(model.predict(state)[:, 0], expected[:, step])
        model.commit(state, codes[:, step : step + 1])
