"""xAR and its entities: what the contract tests do not say."""

import pytest
import torch

from argen.build import build
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.errors import IncompatibleError, UserError
from argen.generators.heads.flow import FlowHead, Velocity
from argen.generators.heads.guidance import GuidanceStep
from argen.generators.xar.entities import entities
from argen.generators.xar.xar import whole_time
from argen.layers.noise import SeededNoise
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

SPEC = CodeSpec("continuous", (Segment((4, 6), dim=3),))
L = SPEC.length
KINDS = (
    ("token", None),
    ("cell", 3),
    ("cell", None),
    ("subsample", 2),
    ("scale", 3),
    ("image", None),
)


def xar(entity, size, *, spec=SPEC, **options):
    torch.manual_seed(0)
    config = for_codes(preset("generator", "tiny_xar"), spec, num_classes=4)
    config["conditioner"]["dim"] = 32
    sizes = {"dim": 32, "heads": 2, "depth": 1, "entity": entity, "entity_size": size}
    model = build({**config, **sizes, "sampling_steps": 4, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def sample(model, *, rows=2, seeds=(5, 6), scale=2.0, temperature=1.0, known=None):
    return Sequential()(
        model,
        model.conditioner(torch.arange(rows)),
        SamplingContext(
            guidance=Guidance(scale=scale, schedule="linear", inclusive=True),
            filters=Filters(temperature=temperature),
            noise=SeededNoise(seeds[:rows]),
            known=known,
        ),
    )


@pytest.mark.parametrize("shape", [(4, 6), (1, 7), (5, 5), (1, 1)])
@pytest.mark.parametrize("kind", ["token", "cell", "subsample", "scale", "image"])
def test_entities_cover_every_code_once(kind, shape):
    spec = CodeSpec("continuous", (Segment(shape, dim=2),))
    found = entities(spec, kind)
    found.plan.check(spec)
    assert sum(found.lengths) == len(found.places) == len(found.numbers())
    codes = torch.randn(2, spec.length, 2)
    sequence = found.sequence(codes)
    assert sequence.shape[1] == len(found.places)
    start = sum(h * w for h, w in found.coarse)
    torch.testing.assert_close(sequence[:, start:][:, found.order().argsort()], codes)


def test_entities_of_a_grid():
    # 0  1  2  3
    # 4  5  6  7
    # 8  9 10 11
    spec = CodeSpec("continuous", (Segment((3, 4), dim=1),))
    assert entities(spec, "cell", 2).groups == ((0, 1, 4, 5), (2, 3, 6, 7), (8, 9), (10, 11))
    assert entities(spec, "subsample", 2).groups == ((0, 2, 8, 10), (1, 3, 9, 11), (4, 6), (5, 7))
    assert entities(spec, "image").groups == (tuple(range(12)),)
    assert entities(spec, "scale", 3).coarse == ((1, 1), (2, 2))
    ramp = torch.arange(12.0).view(1, 12, 1)
    first = entities(spec, "scale", 3).sequence(ramp)[0, 0, 0]
    assert float(first) == pytest.approx(5.5)  # the coarsest scale is the mean of all codes
    # The place of a coarse code is the middle of what it covers.
    assert entities(spec, "scale", 3).places[0] == (1.0, 1.5)


def test_a_pyramid_of_codes_brings_its_own_scales():
    segments = (Segment((1, 1), dim=2), Segment((2, 2), dim=2), Segment((4, 4), dim=2))
    spec = CodeSpec("continuous", segments)
    found = entities(spec, "scale")
    assert found.coarse == ()
    assert [len(group) for group in found.groups] == [1, 4, 16]
    model = xar("scale", None, spec=spec)
    assert sample(model).codes.shape == (2, 21, 2)
    with pytest.raises(UserError, match="3 scales"):
        entities(spec, "scale", 2)


@pytest.mark.parametrize(("entity", "size"), KINDS)
def test_every_entity_trains_and_samples(entity, size):
    model = xar(entity, size).train()
    codes = torch.randn(2, L, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    noise, losses = SeededNoise([0, 1]), []
    for _ in range(12):
        loss = model.loss(codes, model.conditioner(torch.tensor([0, 1])), noise=noise).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    model.eval()
    result = sample(model)
    SPEC.check(result.codes)
    assert result.passes == len(model.plan.groups)
    alone = sample(model, rows=1)
    torch.testing.assert_close(alone.codes, result.codes[:1], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(sample(model, seeds=(8, 9)).codes, result.codes)


@torch.no_grad()
@pytest.mark.parametrize(("entity", "size"), [kind for kind in KINDS if kind[0] != "scale"])
def test_cached_velocities_equal_the_full_pass(entity, size):
    model = xar(entity, size)
    codes, x = torch.randn(2, L, 3), torch.randn(2, L, 3)
    cond = model.conditioner(torch.tensor([0, 3]))
    field = model.score(codes, cond)
    forced, state, fields = field(x, 0.6), model.start(cond), []
    for group in model.plan.groups:
        fields.append(model.predict(state))
        model.commit(state, codes[:, list(group)])
    # A field stays what it was although the state has moved on.
    for group, field in zip(model.plan.groups, fields):
        found = field(x[:, list(group)], 0.6)
        torch.testing.assert_close(found, forced[:, list(group)], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_training_mask_is_causal_between_cells_and_full_within():
    model = xar("cell", 3)
    cond = model.conditioner(torch.tensor([1]))
    x, t = torch.randn(1, L, 3), torch.rand(1, 4)
    before = model.velocity(x, t, cond)
    changed = x.clone()
    changed[:, 7] += 1.0  # in the second cell of the sequence: cells hold 9, 9, 3 and 3 codes
    moved = (model.velocity(changed, t, cond) - before).abs().sum(-1)[0] > 1e-6
    ends = torch.tensor(model.lengths).cumsum(0).tolist()
    first = next(e for e, end in enumerate(ends) if end > 7)
    start = ends[first] - model.lengths[first]
    assert not moved[:start].any()
    assert moved[start:].all()
    # A time belongs to its own entity alone, and later entities see it.
    later = t.clone()
    later[:, -1] = 0.9 - later[:, -1] * 0.5
    moved = (model.velocity(x, later, cond) - before).abs().sum(-1)[0] > 1e-6
    assert not moved[: ends[-2]].any()
    assert moved[ends[-2] :].all()


def test_times_are_cut_off_in_float32():
    # 0.616 in float32 lies below 0.616, but its product with 1000 rounds to 616.
    assert whole_time(0.616) == 616
    assert [whole_time(t) for t in (0.0, 0.0409, 1.0)] == [0, 40, 1000]


class Field(Velocity):
    """A velocity field that is written out."""

    def __init__(self, evaluate, shape):
        self.evaluate, self.shape, self.device = evaluate, shape, torch.device("cpu")

    def __call__(self, x, t):
        return self.evaluate(x, t)


def field_towards(target, null=None):
    """Return the exact field of a point mass, whose flow ends in that point."""
    rows = target if null is None else torch.cat((target, null))

    def evaluate(x, t):
        return (x - rows) / max(t, 1e-9)

    return Field(evaluate, tuple(rows.shape))


def follow(head, field, *, weight=None, temperature=1.0):
    return head.sample(
        field,
        guidance=None if weight is None else GuidanceStep(weight),
        filters=Filters(temperature=temperature),
        noise=SeededNoise([0, 1]),
        positions=torch.arange(4),
    )


# The last stochastic step leaves noise of standard deviation 0.04, its time.
@pytest.mark.parametrize(("sampler", "close"), [("euler", 1e-4), ("euler_maruyama", 0.2)])
def test_both_samplers_reach_a_point_mass(sampler, close):
    target = torch.randn(2, 4, 3)
    head = FlowHead(sampler=sampler, steps=40)
    drawn = follow(head, field_towards(target))
    torch.testing.assert_close(drawn, target, rtol=0.0, atol=close)
    assert drawn.dtype == torch.float32


def test_the_stochastic_sampler_keeps_the_marginals():
    # Velocity of a standard normal target: at time t the distribution is N(0, (1-t)^2 + t^2).
    def evaluate(x, t):
        return x * (2 * t - 1) / ((1 - t) ** 2 + t**2)

    shape = (64, 64, 3)
    head = FlowHead(steps=60)
    drawn = head.sample(
        Field(evaluate, shape),
        guidance=None,
        filters=Filters(),
        noise=SeededNoise(range(64)),
        positions=torch.arange(64),
    )
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.05)
    assert float(drawn.mean()) == pytest.approx(0.0, abs=0.05)


def test_guidance_acts_within_its_interval():
    a, b = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    plain = follow(FlowHead(steps=8), field_towards(a))
    never = FlowHead(steps=8, interval=(0.999, 0.9999))
    torch.testing.assert_close(follow(never, field_towards(a, b), weight=3.0), plain)
    always = follow(FlowHead(steps=8), field_towards(a, b), weight=3.0)
    assert not torch.allclose(always, plain, atol=0.1)
    tensor = follow(FlowHead(steps=8), field_towards(a, b), weight=torch.full((2, 4), 3.0))
    torch.testing.assert_close(tensor, always)
    torch.testing.assert_close(follow(FlowHead(steps=8), field_towards(a, b), weight=1.0), plain)


def test_temperature_scales_the_stochastic_steps():
    field = field_towards(torch.randn(2, 4, 3))
    head = FlowHead(steps=6)
    assert not torch.equal(follow(head, field, temperature=0.0), follow(head, field))
    with pytest.raises(UserError, match="euler"):
        follow(FlowHead(sampler="euler", steps=6), field, temperature=0.5)


def test_known_codes_stay():
    model = xar("cell", 3)
    positions = torch.tensor([0, 1, 13])
    codes = torch.randn(2, 3, 3)
    result = sample(model, known=(positions, codes))
    torch.testing.assert_close(result.codes[:, positions], codes)


def test_wrong_choices_are_named():
    with pytest.raises(UserError, match="'cell'"):
        entities(SPEC, "cels")
    with pytest.raises(UserError, match="no size"):
        entities(SPEC, "token", 2)
    for options, word in (({"sampler": "heun"}, "sampler"), ({"steps": 0}, "step")):
        with pytest.raises(UserError, match=word):
            FlowHead(**options)
    discrete = CodeSpec("discrete", (Segment((4, 4), vocab_sizes=(16,)),))
    with pytest.raises(IncompatibleError, match="continuous"):
        xar("cell", None, spec=discrete)
    model = xar("cell", None)
    cond = model.conditioner(torch.tensor([0]))
    cond.vector_BD = cond.tokens_BTD = None
    with pytest.raises(UserError, match="need a condition"):
        model.start(cond)
