"""MAR and masked decoding: what the contract tests do not say."""

import math

import pytest
import torch

from argen.build import build
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.masked import Masked, cosine_counts
from argen.errors import IncompatibleError, UserError
from argen.generators.conditioning import TextConditioner, TextFeatures
from argen.generators.mar import MAR
from argen.generators.mar.mar import MARNoise, truncated_normal
from argen.layers.noise import SeededNoise
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

SPEC = CodeSpec("continuous", (Segment((3, 5), dim=3),))  # odd and not square
L = SPEC.length


def mar(**options):
    torch.manual_seed(0)
    config = for_codes(preset("generator", "tiny_mar"), SPEC, num_classes=4)
    config["conditioner"]["dim"] = 32
    model = build({**config, "dim": 32, "heads": 2, "head_width": 24, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return mar()


def sample(model, *, steps=5, rows=2, scale=2.0, known=None, observer=None, temperature=1.0):
    return Masked(steps)(
        model,
        model.conditioner(torch.arange(rows)),
        SamplingContext(
            guidance=Guidance(scale=scale, schedule="linear"),
            filters=Filters(temperature=temperature),
            noise=SeededNoise(range(rows)),
            known=known,
            observer=observer,
        ),
    )


def test_truncated_normal_has_the_right_quantiles():
    # Mean 1 and upper bound 1: the lower half of a normal, cut at 0.7.
    shares = [truncated_normal(u, 0.7, 1.0, 0.25) for u in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert shares[0] == pytest.approx(0.7)
    assert shares[-1] == 1.0
    normal = torch.distributions.Normal(1.0, 0.25)
    low = float(normal.cdf(torch.tensor(0.7)))
    for u, share in zip((0.25, 0.5, 0.75), shares[1:-1]):
        assert float(normal.cdf(torch.tensor(share))) == pytest.approx(low + u * (0.5 - low), 1e-4)


@pytest.mark.parametrize(("length", "steps"), [(256, 256), (256, 64), (16, 5), (7, 1), (1, 1)])
def test_every_pass_draws_something(length, steps):
    counts = cosine_counts(length, steps)
    assert len(counts) == steps
    assert sum(counts) == length
    assert min(counts) >= 1
    left = length - counts[0]
    if steps > 1:
        assert left == min(length - 1, math.floor(length * math.cos(math.pi / 2 / steps)))


def test_more_passes_than_codes_are_refused(model):
    with pytest.raises(UserError, match=rf"\[1, {L}\]"):
        sample(model, steps=L + 1)


def test_loss_is_the_mean_over_masked_codes_of_all(model):
    codes, cond = torch.randn(2, L, 3), model.conditioner(torch.tensor([0, 3]))
    draws = model.random_masking(2, noise=SeededNoise([4, 5]))
    loss = model.loss(codes, cond, draws=draws).loss
    # As published: every position goes through the head, then the known ones are thrown away.
    known = draws.order_BL[:, draws.masked :].sort(dim=1).values
    error, bound = model.head.terms(
        model.forward_mae(codes, cond, known), codes, draws.t_mBL, draws.noise_mBLC
    )
    mask = torch.ones(2, L).scatter(1, known, 0.0).expand_as(error)
    torch.testing.assert_close(loss, ((error + bound) * mask).sum() / mask.sum())


def test_loss_draws_are_replayed_from_noise(model):
    codes, cond = torch.randn(2, L, 3), model.conditioner(torch.tensor([0, 3]))
    losses = [model.loss(codes, cond, noise=SeededNoise([4, 5])).loss for _ in range(2)]
    assert losses[0] == losses[1]
    draws = model.random_masking(2, noise=SeededNoise([4, 5]))
    assert draws.order_BL.sort(dim=1).values.equal(torch.arange(L).expand(2, L))
    assert math.ceil(0.7 * L) <= draws.masked <= L
    assert 0 <= int(draws.t_mBL.min()) <= int(draws.t_mBL.max()) < 1000
    assert not draws.order_BL[0].equal(draws.order_BL[1])


def test_masks_cover_their_range():
    model = mar(mask_ratio_min=0.2)
    counts = {model.random_masking(1, noise=SeededNoise([seed])).masked for seed in range(200)}
    assert min(counts) < 0.5 * L
    assert max(counts) == L


def test_only_known_codes_are_seen(model):
    codes, cond = torch.randn(1, L, 3), model.conditioner(torch.tensor([1]))
    codes.requires_grad_()
    known = torch.tensor([[1, 4, 9]])
    model.forward_mae(codes, cond, known).sum().backward()
    seen = codes.grad.abs().sum(-1)[0].nonzero()[:, 0]
    assert seen.tolist() == [1, 4, 9]


def test_all_or_nothing_known(model):
    codes, cond = torch.randn(1, L, 3), model.conditioner(torch.tensor([1]))
    everything = torch.arange(L)[None]
    assert model.forward_mae(codes, cond, everything[:, :0]).isfinite().all()
    assert model.forward_mae(codes, cond, everything).isfinite().all()
    draws = MARNoise(everything, L, torch.zeros(4, 1, L, dtype=torch.long), torch.zeros(4, 1, L, 3))
    loss = model.loss(codes, cond, draws=draws).loss
    loss.backward()  # the input layer takes part even where nothing is known
    assert model.network.input.weight.grad is not None


def test_guidance_weights_follow_what_is_known(model):
    # Doubled rows and a linear weight; the observer sees the raw rows of both halves.
    seen = []
    sample(model, observer=lambda positions, codes, params: seen.append((positions, params)))
    assert [p.shape[1] for p, _ in seen] == cosine_counts(L, 5)
    assert all(params.shape[0] == 4 for _, params in seen)
    drawn = torch.cat([p for p, _ in seen], dim=1)
    assert drawn.sort(dim=1).values.equal(torch.arange(L).expand(2, L))
    assert not drawn[0].equal(drawn[1])  # an order of its own for every sample


def test_known_codes_stay_and_are_seen(model):
    positions = torch.tensor([0, 7, 3, 14])
    codes = torch.randn(2, 4, 3)
    result = sample(model, known=(positions, codes))
    torch.testing.assert_close(result.codes[:, positions], codes)
    other = sample(model, known=(positions, -codes))
    rest = [p for p in range(L) if p not in positions.tolist()]
    assert not torch.allclose(result.codes[:, rest], other.codes[:, rest])
    whole = sample(model, known=(torch.arange(L), torch.ones(2, L, 3)))
    assert whole.passes == 0
    assert whole.codes.eq(1).all()


def test_fixed_orders_are_refused():
    spec = CodeSpec("continuous", (Segment((2, 2), dim=3),))
    xar = build(for_codes(preset("generator", "tiny_xar"), spec, num_classes=4))
    with pytest.raises(IncompatibleError, match="decoder=sequential"):
        Masked().check(xar)


def test_discrete_codes_are_refused():
    spec = CodeSpec("discrete", (Segment((4, 4), vocab_sizes=(16,)),))
    with pytest.raises(IncompatibleError, match="continuous"):
        build(for_codes(preset("generator", "tiny_mar"), spec, num_classes=4))


def test_captions_fill_the_buffer():
    torch.manual_seed(0)
    text = TextConditioner(6, 32, length=5)
    options = {"dim": 32, "depth": 1, "heads": 2, "head_width": 16, "dropout": 0.0}
    model = MAR(spec=SPEC, conditioner=text, buffer=5, attention_dropout=0.0, **options)
    torch.nn.init.normal_(model.head.net.out.weight, std=0.1)
    features = torch.randn(2, 5, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    cond = model.conditioner(TextFeatures(features, mask))
    known = torch.arange(4).expand(2, 4)
    codes = torch.randn(2, L, 3)
    before = model.forward_mae(codes, cond, known)
    changed = features.clone()
    changed[1, 2:] = 9.0  # padding
    after = model.forward_mae(codes, model.conditioner(TextFeatures(changed, mask)), known)
    torch.testing.assert_close(before, after)
    changed[1, 0] = 9.0
    heard = model.forward_mae(codes, model.conditioner(TextFeatures(changed, mask)), known)
    assert not torch.allclose(before[1], heard[1])
    model.loss(codes, cond).loss.backward()
    with pytest.raises(UserError, match="buffer=5"):
        MAR(spec=SPEC, conditioner=text, buffer=8, **options)


def test_gradient_checkpointing_changes_nothing():
    codes, labels = torch.randn(2, L, 3), torch.tensor([0, 3])
    gradients = []
    for flag in (False, True):
        model = mar(gradient_checkpointing=flag).train()
        model.loss(codes, model.conditioner(labels), noise=SeededNoise([4, 5])).loss.backward()
        gradients.append(model.network.input.weight.grad)
    torch.testing.assert_close(*gradients)


def test_the_head_trains_under_autocast_but_its_losses_are_in_float32():
    model, types = mar().train(), []
    for block in model.head.net.blocks:
        block.modulation.register_forward_hook(lambda m, given, found: types.append(found.dtype))
    codes, labels = torch.randn(2, L, 3), torch.tensor([0, 3])
    noise = SeededNoise([4, 5])
    full = model.loss(codes, model.conditioner(labels), noise=noise).loss
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(codes, model.conditioner(labels), noise=noise).loss
    assert set(types) == {torch.float32, torch.bfloat16}
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.05, atol=0)


def test_stacks_of_unequal_width():
    model = mar(decoder_dim=48, decoder_depth=1, decoder_heads=3, mlp_ratio=2.0)
    assert sample(model, steps=3).codes.shape == (2, L, 3)
