import pytest
import torch

from argen.decoding.guidance import Guidance
from argen.errors import UserError
from argen.generators.heads.base import guide


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
    params = rows()
    cond, null = params.chunk(2)
    plain = guide(params, 3.0)
    aside = guide(params, Guidance(3.0, parallel=0.0).weight(0, 1))
    centred = cond - cond.mean(-1, keepdim=True)
    moved = aside - null
    torch.testing.assert_close((moved * centred).sum(-1), torch.zeros(3, 4), atol=1e-4, rtol=0)
    # Only that part is gone, and a factor of 1 is plain guidance.
    gone = plain - aside
    assert torch.nn.functional.cosine_similarity(gone, centred, dim=-1).abs().min() > 0.9999
    capped = Guidance(3.0, norm_cap=1e6).weight(0, 1)
    torch.testing.assert_close(guide(params, capped), plain, atol=1e-5, rtol=1e-5)


def test_projection_does_not_see_a_constant_in_the_logits():
    params, shift = rows(), torch.randn(6, 4, 1)
    weight = Guidance(2.5, parallel=0.3, norm_cap=2.0).weight(0, 1)
    laws = [torch.softmax(guide(p, weight), dim=-1) for p in (params, params + shift)]
    torch.testing.assert_close(laws[0], laws[1], atol=1e-5, rtol=1e-4)


def test_the_difference_is_shortened_to_the_cap():
    params = rows()
    null = params.chunk(2)[1]
    moved = guide(params, Guidance(2.0, norm_cap=0.5).weight(0, 1)) - null
    length = (moved - moved.mean(-1, keepdim=True)).norm(dim=-1)
    torch.testing.assert_close(length, torch.full((3, 4), 1.0))


def test_weights_of_their_own_for_every_row():
    params = rows()
    table = torch.tensor([[1.0, 2.0, 0.0, 3.0]] * 3)
    found = guide(params, table)
    cond, null = params.chunk(2)
    assert torch.equal(found[:, 0], cond[:, 0])
    assert torch.equal(found[:, 2], null[:, 2])
    torch.testing.assert_close(found[:, 3], guide(params, 3.0)[:, 3])
