import pytest
import torch

from argen.decoding.guidance import Guidance
from argen.errors import UserError
from argen.generators.heads.guidance import GuidanceStep, Projection, guide


def weights(guidance, steps):
    return [guidance.weight(step, steps) for step in range(steps)]


def test_rising_schedules_start_and_end_where_they_say():
    assert weights(Guidance(3.0), 4) == [3.0] * 4
    assert weights(Guidance(5.0, "linear"), 4) == [1.0, 2.0, 3.0, 4.0]
    assert weights(Guidance(4.0, "linear", inclusive=True), 4) == [1.0, 2.0, 3.0, 4.0]
    assert weights(Guidance(10.0, "linear", start=2.0, inclusive=True), 5)[::4] == [2.0, 10.0]
    for schedule in ("cosine", "power_cosine", "sine", "log"):
        rising = weights(Guidance(4.0, schedule, power=2.0, inclusive=True), 9)
        assert rising[0] == pytest.approx(1.0)
        assert rising[-1] == pytest.approx(4.0)
        assert rising == sorted(rising)


def test_interval_leaves_later_steps_unguided():
    assert weights(Guidance(4.0, interval=1), 6) == [4.0, 4.0, 4.0, 1.0, 1.0, 1.0]


def test_a_list_gives_each_step_its_weight():
    guidance = Guidance([1.0, 2.0, 3.0])
    assert weights(guidance, 5) == [1.0, 2.0, 3.0, 3.0, 3.0]
    assert guidance.active
    assert not Guidance([1.0, 1.0]).active


def test_guidance_of_one_is_off():
    assert not Guidance().active
    assert Guidance().weight(0, 4) is None
    assert Guidance(1.0, "linear", start=2.0).active


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": -1.0},
        {"scale": []},
        {"schedule": "steep"},
        {"scale": [1.0, 2.0], "schedule": "linear"},
        {"norm_cap": -1.0},
        {"sub_tokens": [1.0, 2.0], "parallel": 0.0},
        {"inclusive": True, "ahead": True},
    ],
)
def test_senseless_settings_are_refused(settings):
    with pytest.raises(UserError):
        Guidance(**settings)


def rows():
    return torch.randn(2 * 3, 4, 20, generator=torch.Generator().manual_seed(0))


def test_projection_takes_out_the_part_along_the_prediction():
    outputs = rows()
    cond, null = outputs.chunk(2)
    plain = guide(outputs, GuidanceStep(3.0))
    aside = guide(outputs, Guidance(3.0, parallel=0.0).step(0, 1))
    centred = cond - cond.mean(-1, keepdim=True)
    moved = aside - null
    torch.testing.assert_close((moved * centred).sum(-1), torch.zeros(3, 4), atol=1e-4, rtol=0)
    # Only that part is gone, and a factor of 1 is plain guidance.
    gone = plain - aside
    assert torch.nn.functional.cosine_similarity(gone, centred, dim=-1).abs().min() > 0.9999
    capped = Guidance(3.0, norm_cap=1e6).step(0, 1)
    torch.testing.assert_close(guide(outputs, capped), plain, atol=1e-5, rtol=1e-5)


def test_projection_does_not_see_a_constant_in_the_logits():
    outputs, shift = rows(), torch.randn(6, 4, 1)
    weight = Guidance(2.5, parallel=0.3, norm_cap=2.0).step(0, 1)
    probs = [torch.softmax(guide(p, weight), dim=-1) for p in (outputs, outputs + shift)]
    torch.testing.assert_close(probs[0], probs[1], atol=1e-5, rtol=1e-4)


def test_the_difference_is_shortened_to_the_cap():
    outputs = rows()
    null = outputs.chunk(2)[1]
    moved = guide(outputs, Guidance(2.0, norm_cap=0.5).step(0, 1)) - null
    length = (moved - moved.mean(-1, keepdim=True)).norm(dim=-1)
    torch.testing.assert_close(length, torch.full((3, 4), 1.0))


def test_weights_of_their_own_for_every_row():
    outputs = rows()
    table = torch.tensor([[1.0, 2.0, 0.0, 3.0]] * 3)
    found = guide(outputs, GuidanceStep(table))
    cond, null = outputs.chunk(2)
    assert torch.equal(found[:, 0], cond[:, 0])
    assert torch.equal(found[:, 2], null[:, 2])
    torch.testing.assert_close(found[:, 3], guide(outputs, GuidanceStep(3.0))[:, 3])


def test_weights_of_their_own_are_projected_as_a_single_one():
    outputs, projection = rows(), Projection(parallel=0.3, norm_cap=2.0)
    found = guide(outputs, GuidanceStep(torch.tensor([1.0, 2.0, 2.0, 3.0]), projection))
    for n, weight in enumerate((1.0, 2.0, 2.0, 3.0)):
        expected = guide(outputs, GuidanceStep(weight, projection))
        torch.testing.assert_close(found[:, n], expected[:, n])
    assert not torch.allclose(found[:, 3], guide(outputs, GuidanceStep(3.0))[:, 3])
