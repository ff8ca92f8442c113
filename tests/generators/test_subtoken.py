"""Codes of several ids: split vocabularies, factorised and parallel heads, controls for each id."""

import math

import pytest
import torch
from torch.nn import functional as F

from argen.build import build
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.errors import IncompatibleError, UserError
from argen.generators.heads.guidance import GuidanceStep
from argen.generators.heads.split import VocabularySplit
from argen.layers.noise import SeededNoise
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

SUBS = CodeSpec("discrete", (Segment((3, 4), vocab_sizes=(4, 16, 8)),))
SINGLE = CodeSpec("discrete", (Segment((3, 4), vocab_sizes=(96,)),))
BITS = CodeSpec("binary", (Segment((3, 4), bits=7, dim=7),))


def make(name="tiny_open_magvit2", spec=SUBS, **options):
    torch.manual_seed(0)
    model = build(for_codes({**preset("generator", name), **options}, spec, num_classes=5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def codes_of(spec, rows=3):
    if spec.kind == "binary":
        return torch.randint(2, spec.code_shape(rows))
    columns = [torch.randint(v, (rows, spec.length)) for v in spec.segments[0].vocab_sizes]
    return columns[0] if len(columns) == 1 else torch.stack(columns, dim=-1)


@pytest.mark.parametrize(
    ("spec", "parts", "sizes"),
    [
        (SUBS, None, (4, 16, 8)),
        (SINGLE, 2, (8, 12)),
        (SINGLE, [3, 32], (3, 32)),
        (SINGLE, 3, (4, 4, 6)),
        (BITS, 2, (8, 16)),
        (BITS, [2, 4, 16], (2, 4, 16)),
        (BITS, 1, (128,)),
    ],
)
def test_split_and_join(spec, parts, sizes):
    split, codes = VocabularySplit(spec, parts), codes_of(spec)
    assert split.sizes == sizes
    ids = split.split(codes)
    assert ids.shape == (3, 12, len(sizes))
    assert all(int(ids[..., g].max()) < size for g, size in enumerate(sizes))
    assert torch.equal(split.join(ids), codes)


def test_the_first_id_is_the_most_significant():
    codes = torch.tensor([[1, 0, 1, 1, 0, 0, 1]])
    assert VocabularySplit(BITS, [4, 32]).split(codes).tolist() == [[0b10, 0b11001]]
    assert VocabularySplit(SINGLE, [8, 12]).split(torch.tensor([25])).tolist() == [[2, 1]]


@pytest.mark.parametrize(
    ("spec", "parts", "message"),
    [
        (SINGLE, None, "split=2"),
        (SINGLE, [8, 8], "must be 96"),
        (CodeSpec("discrete", (Segment((2, 2), vocab_sizes=(97,)),)), 2, "no 2 factors"),
        (BITS, [3, 4], "powers of two"),
        (BITS, 8, "1 to 7 groups"),
        (SUBS, [8, 64], "already"),
        (
            CodeSpec(
                "discrete", (Segment((1, 1), vocab_sizes=(4,)), Segment((2, 2), vocab_sizes=(8,)))
            ),
            2,
            "different vocabularies",
        ),
    ],
)
def test_impossible_splits_are_refused(spec, parts, message):
    with pytest.raises(IncompatibleError, match=message):
        VocabularySplit(spec, parts)


@pytest.mark.parametrize("name", ["tiny_open_magvit2", "tiny_elm"])
@pytest.mark.parametrize("spec", [SUBS, SINGLE, BITS], ids=["ids", "single", "bits"])
@torch.no_grad()
def test_draws_follow_the_teacher_forced_law(name, spec):
    model = make(name, spec, split=None if spec is SUBS else 2)
    codes, cond = codes_of(spec, 2), model.conditioner(torch.tensor([0, 3]))
    params = model.score(codes, cond)
    noise, positions = SeededNoise([5, 6]), torch.arange(spec.length)
    drawn = model.head.sample(
        params, guidance=None, filters=Filters(), noise=noise, positions=positions
    )
    spec.check(drawn)
    ids = model.head.to_ids(drawn)
    for g, logits in enumerate(model.head.logits(params, drawn)):
        # The inverse of the cumulative law, given the ids that were drawn before.
        cdf = torch.softmax(logits, -1).cumsum(-1)
        upper = cdf.gather(-1, ids[..., g, None])[..., 0]
        lower = upper - torch.softmax(logits, -1).gather(-1, ids[..., g, None])[..., 0]
        uniform = noise.uniform(positions, use=g)
        assert ((lower <= uniform + 1e-5) & (uniform <= upper + 1e-5)).all()


@torch.no_grad()
def test_only_the_intra_stack_lets_ids_hear_each_other():
    codes, changed = codes_of(SUBS), codes_of(SUBS)
    changed[..., 1:] = codes[..., 1:]
    for name, hears in (("tiny_open_magvit2", True), ("tiny_elm", False)):
        model = make(name)
        params = torch.randn(3, 12, 64)
        before, after = (model.head.logits(params, c) for c in (codes, changed))
        assert torch.equal(before[0], after[0])
        assert torch.allclose(before[1], after[1]) != hears
        assert torch.allclose(before[2], after[2]) != hears
        unseen = changed.clone()
        unseen[..., 2] = (codes[..., 2] + 1) % 8
        for one, other in zip(after, model.head.logits(params, unseen), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["tiny_open_magvit2", "tiny_elm"])
def test_loss_is_the_sum_or_the_mean_of_the_ids(name):
    model, codes = make(name), codes_of(SUBS)
    cond = model.conditioner(torch.tensor([0, 3, 1]))
    output = model.loss(codes, cond)
    params = model.score(codes, cond)
    each = [
        F.cross_entropy(logits.flatten(0, 1), codes[..., g].flatten())
        for g, logits in enumerate(model.head.logits(params, codes))
    ]
    expected = sum(each) / (len(each) if model.average else 1)
    torch.testing.assert_close(output.loss, expected)
    for g, value in enumerate(each):
        torch.testing.assert_close(output.metrics[f"nll_{g}"], value.detach())
    bits = sum(value.item() for value in each) / math.log(2)
    assert float(output.metrics["bits_per_code"]) == pytest.approx(bits, rel=1e-5)
    assert output.nll.shape == (3, 12)


@torch.no_grad()
def test_guidance_and_filters_of_each_id():
    model, noise = make(), SeededNoise([1, 2])
    params = torch.randn(4, 5, 64)
    positions = torch.arange(5)

    def drawn(weight, filters):
        return model.head.sample(
            params, guidance=GuidanceStep(weight), filters=filters, noise=noise, positions=positions
        )

    greedy = Filters(temperature=0.0)
    ids = drawn((3.0, 1.0, 0.0), Filters(sub_tokens=[{"top_k": 1}, greedy, greedy]))
    logits = model.head.logits(params, torch.cat((ids, ids)))
    for g, weight in enumerate((3.0, 1.0, 0.0)):
        cond, null = logits[g].chunk(2)
        assert torch.equal(ids[..., g], (null + weight * (cond - null)).argmax(-1))
    # One setting stands for all.
    assert torch.equal(drawn((2.0, 2.0, 2.0), Filters()), drawn(2.0, Filters()))
    warm = Filters(temperature=1.5, top_p=0.8)
    assert torch.equal(drawn(2.0, Filters(sub_tokens=[warm] * 3)), drawn(2.0, warm))
    with pytest.raises(UserError, match="3 sub-tokens"):
        drawn((2.0, 2.0), Filters())
    with pytest.raises(UserError, match="one for each"):
        drawn(2.0, Filters(sub_tokens=[warm]))


@torch.no_grad()
def test_weights_of_each_id_follow_the_schedule():
    guidance = Guidance(sub_tokens=[1.9, 2.0], schedule="linear")
    assert guidance.active
    assert guidance.weight(0, 4) == (1.0, 1.0)
    assert guidance.weight(2, 4) == pytest.approx((1.45, 1.5))
    assert not Guidance(sub_tokens=[1.0, 1.0]).active
    with pytest.raises(UserError, match="negative"):
        Guidance(sub_tokens=[1.0, -1.0])
    model, cond_of = make(), torch.tensor([0, 3])
    options = {"filters": Filters(), "noise": SeededNoise([1, 2])}
    cond, decode = model.conditioner(cond_of), Sequential()
    each = decode(model, cond, SamplingContext(guidance=Guidance(sub_tokens=[2.0] * 3), **options))
    assert torch.equal(
        each.codes, decode(model, cond, SamplingContext(guidance=Guidance(2.0), **options)).codes
    )
    plain = make("tiny_gpt", SINGLE)
    with pytest.raises(UserError, match="factorised head"):
        decode(plain, plain.conditioner(cond_of), SamplingContext(guidance=guidance, **options))
    with pytest.raises(UserError, match="factorised head"):
        decode(
            plain,
            plain.conditioner(cond_of),
            SamplingContext(
                guidance=Guidance(),
                filters=Filters(sub_tokens=[{}, {}]),
                noise=SeededNoise([1, 2]),
            ),
        )


@torch.no_grad()
def test_one_sequence_of_slots_for_many_positions():
    """Drawing n positions at once equals drawing them one by one."""
    model, noise = make(), SeededNoise([1, 2, 3])
    params = torch.randn(3, 6, 64)
    options = {"guidance": None, "filters": Filters(), "noise": noise}
    together = model.head.sample(params, positions=torch.arange(6), **options)
    one_by_one = [
        model.head.sample(params[:, i : i + 1], positions=torch.tensor([i]), **options)
        for i in range(6)
    ]
    assert torch.equal(together, torch.cat(one_by_one, dim=1))


def test_too_few_positions_for_the_slots():
    with pytest.raises(UserError, match="intra_layers=0"):
        make(spec=CodeSpec("discrete", (Segment((1, 1), vocab_sizes=(4, 4, 4)),)))
