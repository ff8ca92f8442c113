"""What every generator promises, checked on every tiny preset with the first codes it accepts."""

import copy
from functools import cache

import pytest
import torch
from shipped import (
    CLASSES,
    accepting_decoder,
    condition,
    generator_config,
    make_generator,
    partner,
    random_codes,
    tiny,
)
from torch.utils._pytree import tree_map

from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.errors import UserError
from argen.generators.conditioning import ClassConditioner
from argen.layers.noise import SeededNoise
from argen.runtime.checkpoint import load_strict, read_weights, save_weights

# Parameters that a training pass leaves without gradient, by preset: prefix of the name, why.
WITHOUT_GRADIENT: dict[str, dict[str, str]] = {}
CLOSE = {"rtol": 1e-4, "atol": 2e-5}

NAMES = tiny("generator")
pytestmark = pytest.mark.parametrize("name", NAMES)


def make(name, *, seed=0, **conditioner):
    return make_generator(name, partner(name), seed=seed, **conditioner)


@cache
def shared(name):
    """Return one instance for tests that only read it."""
    return make(name)


def at(params, positions):
    """Pick positions of a group's parameters, whatever they are made of."""
    return tree_map(lambda part: part[:, positions], params)


def joined(parts):
    """Join parameters of successive groups."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts, dim=1)
    return tree_map(lambda *columns: torch.cat(columns, dim=1), *parts)


def some_groups(plan):
    """Return the first group, one in the middle and the last."""
    last = len(plan.groups) - 1
    return sorted({0, last // 2, last})


@torch.no_grad()
def test_plan_and_head_fit_the_spec(name):
    generator = shared(name)
    generator.plan.check(generator.spec)
    codes, cond = random_codes(generator.spec, 2), condition(generator, 2)
    generator.spec.check(codes)
    state = generator.start(cond)
    group = torch.tensor(generator.plan.groups[0])
    drawn = generator.head.sample(
        generator.predict(state),
        weight=None,
        filters=Filters(),
        noise=SeededNoise([0, 1]),
        positions=group,
    )
    assert drawn.shape == codes[:, group].shape
    assert drawn.is_floating_point() == codes.is_floating_point()


@torch.no_grad()
def test_no_group_sees_itself_or_what_comes_after(name):
    generator = shared(name)
    plan, cond = generator.plan, condition(generator, 2)
    codes, others = (random_codes(generator.spec, 2, seed=seed) for seed in (1, 2))
    before = generator.score(codes, cond)
    for k in some_groups(plan):
        unseen = torch.tensor([p for group in plan.groups[k:] for p in group])
        changed = codes.clone()
        changed[:, unseen] = others[:, unseen]
        after = generator.score(changed, cond)
        seen = [p for group in plan.groups[: k + 1] for p in group]
        torch.testing.assert_close(at(after, seen), at(before, seen), **CLOSE)


@torch.no_grad()
def test_every_group_hears_the_codes_before_it(name):
    generator = shared(name)
    plan, cond = generator.plan, condition(generator, 2)
    if len(plan.groups) == 1:
        pytest.skip("one group has nothing before it")
    codes, others = (random_codes(generator.spec, 2, seed=seed) for seed in (1, 2))
    changed = codes.clone()
    changed[:, list(plan.groups[0])] = others[:, list(plan.groups[0])]
    before, after = generator.score(codes, cond), generator.score(changed, cond)
    for k in (1, len(plan.groups) - 1):
        group = list(plan.groups[k])
        with pytest.raises(AssertionError):
            torch.testing.assert_close(at(after, group), at(before, group), rtol=0.0, atol=1e-7)


@torch.no_grad()
def test_the_condition_matters(name):
    generator = shared(name)
    codes = random_codes(generator.spec, 1)
    scores = generator.score(torch.cat((codes, codes)), condition(generator, 2))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            tree_map(lambda part: part[:1], scores), tree_map(lambda part: part[1:], scores)
        )


@torch.no_grad()
def test_cached_passes_equal_teacher_forcing(name):
    generator = shared(name)
    plan, cond = generator.plan, condition(generator, 2)
    codes = random_codes(generator.spec, 2)
    forced = generator.score(codes, cond)
    state, parts = generator.start(cond), []
    for group in plan.groups:
        parts.append(generator.predict(state))
        generator.commit(state, codes[:, list(group)])
    drawn = [p for group in plan.groups for p in group]
    torch.testing.assert_close(joined(parts), at(forced, drawn), **CLOSE)


@torch.no_grad()
def test_any_order_does_not_matter_what_was_known_first(name):
    generator = shared(name)
    if not generator.plan.any_order:
        pytest.skip("the order of this generator is fixed")
    L, cond = generator.spec.length, condition(generator, 2)
    codes, order = random_codes(generator.spec, 2), torch.randperm(generator.spec.length)
    known, asked = order[: L // 2], order[L // 2 :]
    results = []
    for steps in (known.split(max(1, L // 6)), (known.flip(0),)):
        state = generator.start(cond)
        for positions in steps:
            generator.commit(state, codes[:, positions], positions=positions)
        results.append(generator.predict(state, positions=asked))
    torch.testing.assert_close(results[0], results[1], **CLOSE)


@torch.no_grad()
def test_drafts_are_scored_as_by_teacher_forcing(name):
    generator = shared(name)
    plan, cond = generator.plan, condition(generator, 2)
    if not plan.lookahead:
        pytest.skip("this generator does not look ahead")
    codes = random_codes(generator.spec, 2)
    order = [p for group in plan.groups for p in group]
    drawn, forced = codes[:, order], at(generator.score(codes, cond), order)
    k = min(4, len(order) - 4)
    state = generator.start(cond, longest_draft=k)
    torch.testing.assert_close(
        generator.predict(state, drawn[:, :k]), at(forced, slice(0, k + 1)), **CLOSE
    )
    # Rejected codes leave no trace: each row keeps the right start of its draft and one code more.
    counts = torch.tensor([1, 3])
    draft = random_codes(generator.spec, 2, seed=1)[:, order][:, :k]
    draft[1, :2] = drawn[1, :2]
    generator.predict(state, draft)
    generator.commit(state, drawn[:, :3], counts)
    following = torch.stack([drawn[row, n : n + k] for row, n in enumerate(counts.tolist())])
    params = generator.predict(state, following)
    for row, n in enumerate(counts.tolist()):
        torch.testing.assert_close(
            tree_map(lambda part: part[row], params),  # noqa: B023
            tree_map(lambda part: part[row, n : n + k + 1], forced),  # noqa: B023
            **CLOSE,
        )


@torch.no_grad()
def test_a_image_is_the_same_in_any_batch(name):
    generator = shared(name)
    decoder = accepting_decoder(generator)
    cond = condition(generator, 3)

    def drawn(rows, seeds, scale):
        result = decoder(
            generator,
            cond.rows(torch.tensor(rows)),
            guidance=Guidance(scale=scale),
            filters=Filters(),
            noise=SeededNoise(seeds),
        )
        generator.spec.check(result.codes)
        return result.codes

    scale = 2.0 if generator.conditioner.has_null else 1.0
    together = drawn([0, 1, 2], [7, 8, 9], scale)
    torch.testing.assert_close(drawn([1], [8], scale), together[1:2], rtol=1e-3, atol=1e-3)
    assert not torch.equal(drawn([1], [10], scale), together[1:2])


def test_loss_reaches_every_parameter(name):
    generator = make(name).train()
    codes = random_codes(generator.spec, 4)
    rows = 4
    # All classes, the null one too, so that every row of the table takes part.
    if isinstance(generator.conditioner, ClassConditioner):
        rows = CLASSES + 1
        codes = random_codes(generator.spec, rows)
        drop_B = torch.arange(rows) == CLASSES if generator.conditioner.has_null else None
        labels = torch.arange(rows).clamp(max=CLASSES - 1)
        cond = generator.conditioner(labels, drop_B=drop_B)
    else:
        cond = condition(generator, rows)
    output = generator.loss(codes, cond)
    assert output.loss.ndim == 0
    assert output.loss.isfinite()
    assert all(not metric.requires_grad for metric in output.metrics.values())
    if output.nll is not None:
        assert output.nll.shape == (rows, generator.spec.length)
    output.loss.backward()
    excused = tuple(WITHOUT_GRADIENT.get(name, {}))
    missing = [
        key
        for key, parameter in generator.named_parameters()
        if parameter.requires_grad
        and (parameter.grad is None or not parameter.grad.any())
        and not key.startswith(excused)
    ]
    assert not missing


@torch.no_grad()
def test_weights_round_trip(name, tmp_path):
    generator, other = make(name), make(name, seed=1)
    save_weights(generator.state_dict(), tmp_path / "generator.safetensors")
    load_strict(other, read_weights(tmp_path / "generator.safetensors"), source="the copy")
    codes = random_codes(generator.spec, 2)
    torch.testing.assert_close(
        at(other.score(codes, condition(other, 2)), slice(None)),
        at(generator.score(codes, condition(generator, 2)), slice(None)),
        rtol=0.0,
        atol=0.0,
    )


@torch.no_grad()
def test_deepcopy(name):
    generator = shared(name)
    twin, codes = copy.deepcopy(generator), random_codes(generator.spec, 2)
    torch.testing.assert_close(
        at(twin.score(codes, condition(twin, 2)), slice(None)),
        at(generator.score(codes, condition(generator, 2)), slice(None)),
        rtol=0.0,
        atol=0.0,
    )
    ours = {p.data_ptr() for p in generator.parameters()}
    assert not ours & {p.data_ptr() for p in twin.parameters()}


def test_bfloat16_loss_is_close(name):
    generator = shared(name)
    codes, noise = random_codes(generator.spec, 2), SeededNoise([0, 1])
    exact = generator.loss(codes, condition(generator, 2), noise=noise).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = generator.loss(codes, condition(generator, 2), noise=noise).loss
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
    torch.autograd.grad(rounded, [p for p in generator.parameters() if p.requires_grad][-1:])


def test_guidance_needs_a_null_condition(name):
    tokenizer = partner(name)
    if "ClassConditioner" not in generator_config(name, tokenizer)["conditioner"]["_target_"]:
        pytest.skip("captions always have a null twin")
    generator = make(name, drop_rate=0.0, null_row=False)
    assert not generator.conditioner.has_null
    with pytest.raises(UserError, match="null"):
        accepting_decoder(generator)(
            generator,
            condition(generator, 1),
            guidance=Guidance(scale=2.0),
            filters=Filters(),
            noise=SeededNoise([0]),
        )


def test_labels_out_of_range_are_refused(name):
    generator = shared(name)
    if not isinstance(generator.conditioner, ClassConditioner):
        pytest.skip("not conditioned on classes")
    for label in (-1, CLASSES + 1):
        with pytest.raises(UserError, match=f"{CLASSES} classes"):
            generator.conditioner(torch.tensor([label]))


@torch.inference_mode()
def test_weights_in_bfloat16_draw(name):
    generator = copy.deepcopy(shared(name)).bfloat16()
    result = accepting_decoder(generator)(
        generator,
        condition(generator, 2),
        guidance=Guidance(2.0),
        filters=Filters(),
        noise=SeededNoise([0, 1]),
    )
    generator.spec.check(result.codes)
    assert result.codes.float().isfinite().all()
