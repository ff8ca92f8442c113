import math

import pytest
import torch

from argen.build import build
from argen.decoding.confidence import Confidence, maskgit_guidance
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.masked import Masked
from argen.errors import IncompatibleError, UserError
from argen.generators.maskgit.halton import halton_order
from argen.generators.maskgit.mask_schedule import group_sizes
from argen.layers.noise import SeededNoise
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

SPEC = CodeSpec("discrete", (Segment((4, 6), vocab_sizes=(9,)),))


def make(name="tiny_maskgit", spec=SPEC):
    torch.manual_seed(0)
    generator = build(for_codes(preset("generator", name), spec, num_classes=4))
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape))
    return generator.eval()


def draw(generator, decoder=None, *, labels=(0, 1, 2), seeds=(5, 6, 7), cfg=1.0, **options):
    options = {"filters": Filters(), "guidance": Guidance(scale=cfg), **options}
    return (decoder or Confidence())(
        generator,
        generator.conditioner(torch.tensor(labels)),
        SamplingContext(noise=SeededNoise(seeds), **options),
    )


class Steps:
    """Remembers what each step was about to fill in."""

    def __init__(self):
        self.positions, self.codes, self.outputs = [], [], []

    def __call__(self, positions, codes, outputs):
        self.positions.append(positions.clone())
        self.codes.append(codes.clone())
        self.outputs.append(outputs.clone())


@pytest.mark.parametrize("schedule", ["arccos", "cosine", "linear"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_each_step_keeps_what_the_schedule_says(schedule, cfg):
    generator, steps = make(), Steps()
    result = draw(generator, Confidence(6, schedule=schedule), cfg=cfg, observer=steps)
    SPEC.check(result.codes)
    assert result.passes == 6
    assert result.accepted.tolist() == [[n] * 3 for n in group_sizes(schedule, 24, 6)]
    for earlier, later in zip(steps.positions, steps.positions[1:]):
        for a, b in zip(earlier.tolist(), later.tolist()):
            assert set(b) < set(a)
    # A code that was kept stays as it was when it was kept.
    for s, (positions, codes) in enumerate(zip(steps.positions, steps.codes)):
        later = steps.positions[s + 1] if s + 1 < 6 else torch.zeros(3, 0, dtype=torch.long)
        kept = ~(positions[..., None] == later[:, None]).any(-1)
        assert torch.equal(result.codes.gather(1, positions)[kept], codes[kept])


def test_without_noise_the_likeliest_codes_are_kept_first():
    generator, steps = make(), Steps()
    result = draw(generator, Confidence(4, choice_temperature=0.0), observer=steps)
    same = draw(generator, Confidence(4, choice_temperature=0.0), seeds=(1, 2, 3))
    assert torch.equal(result.codes, same.codes)
    for s in range(3):
        best, codes = steps.outputs[s].max(-1)
        assert torch.equal(codes, steps.codes[s])
        stays = (steps.positions[s][..., None] == steps.positions[s + 1][:, None]).any(-1)
        for row in range(3):
            assert best[row, stays[row]].max() <= best[row, ~stays[row]].min()


@torch.no_grad()
def test_later_codes_are_drawn_given_those_kept():
    generator, steps = make(), Steps()
    result = draw(generator, Confidence(3), observer=steps)
    cond = generator.conditioner(torch.tensor([0, 1, 2]))
    for positions, outputs in zip(steps.positions, steps.outputs):
        ids = result.codes.scatter(1, positions, generator.mask_id)
        logits = generator.logits(ids, cond)
        expected = logits.gather(1, positions[..., None].expand(-1, -1, 9))
        torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)


def test_a_image_is_the_same_in_any_batch():
    generator = make("tiny_maskgit_uvit")
    together = draw(generator, Confidence(anneal=True), cfg=2.0).codes
    for row in range(3):
        alone = draw(generator, Confidence(anneal=True), labels=[row], seeds=[5 + row], cfg=2.0)
        assert torch.equal(alone.codes[0], together[row])
    assert not torch.equal(together, draw(generator, Confidence(anneal=True), cfg=1.0).codes)
    other = draw(generator, Confidence(anneal=True), seeds=(1, 2, 3), cfg=2.0)
    assert not torch.equal(together, other.codes)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_given_codes_stay_and_are_seen(cfg):
    generator, steps = make(), Steps()
    positions = torch.tensor([[0, 5, 23], [1, 2, 3], [7, 8, 9]])
    codes = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 0]])
    result = draw(generator, Confidence(5), cfg=cfg, observer=steps, known=(positions, codes))
    assert torch.equal(result.codes.gather(1, positions), codes)
    assert result.accepted.sum(0).tolist() == [21] * 3
    assert not (steps.positions[0][..., None] == positions[:, None]).any()
    free = draw(generator, Confidence(5), cfg=cfg)
    assert not torch.equal(result.codes, free.codes)
    whole = (torch.arange(24), free.codes)
    nothing = draw(generator, Confidence(5), cfg=cfg, known=whole)
    assert torch.equal(nothing.codes, free.codes)
    assert nothing.passes == 0


def test_more_steps_than_codes_draw_one_at_a_time():
    result = draw(make(), Confidence(40))
    assert result.passes == 40
    assert set(result.accepted[:, 0].tolist()) == {0, 1}
    assert result.accepted.sum(0).tolist() == [24] * 3


def test_filters_cut_the_draw():
    generator, steps = make(), Steps()
    draw(
        generator, Confidence(4, choice_temperature=50.0), filters=Filters(top_k=2), observer=steps
    )
    for outputs, codes in zip(steps.outputs, steps.codes):
        top = outputs.topk(2, dim=-1).indices
        assert (top == codes[..., None]).any(-1).all()


def test_annealing_sharpens_the_last_steps():
    steps = {anneal: Steps() for anneal in (False, True)}
    for anneal, observer in steps.items():
        draw(make(), Confidence(4, anneal=anneal), observer=observer)
    # The first step has seen nothing, so only the divisor 0.5 + 0.8 * 3 / 4 tells the two apart.
    torch.testing.assert_close(steps[False].outputs[0] / 1.1, steps[True].outputs[0])


def test_confidence_noise_can_be_left_out():
    generator = make()
    with_noise, without = (draw(generator, Confidence(sort_noise=s)) for s in (True, False))
    assert not torch.equal(with_noise.codes, without.codes)


@pytest.mark.parametrize(
    ("decay", "weight"),
    [
        ("constant", lambda s, n: 1 + 4.5),
        ("linear", lambda s, n: 1 + 4.5 * s / n),
        ("power-cosine", lambda s, n: 1 + 3.5 * (1 - math.cos(math.pi * (s / n) ** 3)) / 2),
    ],
)
def test_published_guidance_in_our_terms(decay, weight):
    guidance = maskgit_guidance(4.5, decay, 3.0)
    for step in range(8):
        assert guidance.weight(step, 8) == pytest.approx(weight(step, 8))


def test_guidance_may_follow_the_share_done_after_the_step():
    generator, steps = make(), Steps()
    guidance = Guidance(scale=5.0, schedule="linear")
    draw(generator, Confidence(4, guide_after=True), guidance=guidance, observer=steps)
    plain = Steps()
    draw(generator, Confidence(4), guidance=Guidance(scale=2.0), observer=plain)
    torch.testing.assert_close(steps.outputs[0], plain.outputs[0])  # 1 + 4 / 4


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Confidence(0), "at least one pass"),
        (lambda: Confidence(choice_temperature=-1.0), "greedy"),
        (lambda: Confidence(schedule="cosin"), "Did you mean 'cosine'"),
        (lambda: maskgit_guidance(3.0, "cosine"), "power-cosine"),
        (lambda: Masked(order="spiral"), "halton"),
    ],
)
def test_bad_settings_are_refused(call, match):
    with pytest.raises(UserError, match=match):
        call()


def test_other_generators_are_refused():
    with pytest.raises(IncompatibleError, match="decoder=sequential"):
        draw(make("tiny_gpt"))
    continuous = CodeSpec("continuous", (Segment((4, 4), dim=4),))
    with pytest.raises(IncompatibleError, match="decoder=masked"):
        draw(make("tiny_mar", continuous))


def test_halton_decoding_follows_the_order_from_a_place_of_its_own():
    generator, steps = make(), Steps()
    result = draw(generator, Masked(24, order="halton"), observer=steps)
    SPEC.check(result.codes)
    order = halton_order(SPEC)
    sampled = torch.cat(steps.positions, dim=1).tolist()
    starts = {order.index(row[0]) for row in sampled}
    for row in sampled:
        start = order.index(row[0])
        assert row == order[start:] + order[:start]
    assert len(starts) > 1
    alone = draw(generator, Masked(24, order="halton"), labels=[1], seeds=[6])
    assert torch.equal(alone.codes[0], result.codes[1])
