import pytest
import torch

from argen.build import build
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.local_order import local_order
from argen.decoding.masked import Masked, cosine_counts
from argen.errors import IncompatibleError, UserError
from argen.layers.noise import SeededNoise
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment


def spread(positions, w):
    """Return the smallest distance between positions."""
    place = torch.tensor([[p // w, p % w] for p in positions]).float()
    return torch.cdist(place, place).masked_fill(torch.eye(len(positions)).bool(), 99.0).min()


@pytest.mark.parametrize("grid", [(8, 8), (4, 12), (1, 10)])
def test_every_unknown_position_comes_once(grid):
    L = grid[0] * grid[1]
    known = torch.zeros(2, L, dtype=torch.bool)
    known[0, :3] = known[1, 2:5] = True
    counts = cosine_counts(L - 3, 5)
    probability = torch.rand(2, L, generator=torch.Generator().manual_seed(0))
    order = local_order(grid, counts, known, probability)
    for row in range(2):
        assert sorted(order[row].tolist() + known[row].nonzero()[:, 0].tolist()) == list(range(L))


def test_codes_of_a_pass_are_far_apart_and_near_known_ones():
    h, w, counts = 16, 16, cosine_counts(256, 12)
    none, noise = torch.zeros(4, 256, dtype=torch.bool), SeededNoise(range(4))
    probability = noise.uniform(torch.arange(256))
    local, chaos = local_order((h, w), counts, none, probability), probability.argsort(-1)

    def measures(order):
        apart, near, done = [], [], 0
        place = torch.stack((order // w, order % w), dim=-1).float()
        for count in counts[:-1]:
            group = order[done : done + count].tolist()
            if count > 1:
                apart.append(spread(group, w))
            if done:
                known, new = place[:done], place[done : done + count]
                near.append(torch.cdist(new, known).min(1).values.mean())
            done += count
        return float(torch.stack(apart).mean()), float(torch.stack(near).mean())

    for row in range(4):
        apart, near = measures(local[row])
        apart_random, near_random = measures(chaos[row])
        assert apart > apart_random
        assert near < near_random
    assert len({tuple(order.tolist()) for order in local}) == 4


def test_masked_draws_in_local_order():
    torch.manual_seed(0)
    spec = CodeSpec("continuous", (Segment((4, 4), dim=4),))
    generator = build(for_codes(preset("generator", "tiny_mar"), spec, num_classes=3)).eval()
    groups = []

    def observer(positions, codes, outputs):
        groups.append(positions)

    def draw(known=None):
        return Masked(4, order="local")(
            generator,
            generator.conditioner(torch.tensor([0, 1])),
            SamplingContext(
                guidance=Guidance(),
                filters=Filters(),
                noise=SeededNoise([0, 1]),
                observer=observer,
                known=known,
            ),
        )

    result = draw()
    assert result.passes == 4
    assert torch.cat(groups, dim=1).sort(-1).values.tolist() == [list(range(16))] * 2
    groups.clear()
    given = (torch.tensor([5, 6]), result.codes[:, 5:7])
    again = draw(known=given)
    assert torch.equal(again.codes[:, 5:7], result.codes[:, 5:7])
    # What is sampled first lies beside what is given.
    first = groups[0]
    place = torch.stack((first // 4, first % 4), dim=-1).float()
    known = torch.tensor([[1.0, 1.0], [1.0, 2.0]])
    assert torch.cdist(place, known.expand(2, -1, -1)).amin(-1).max() < 1.5


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="random, halton or local"):
        Masked(order="spiral")
    spec = CodeSpec("continuous", (Segment((2, 2), dim=4), Segment((4, 4), dim=4)))
    try:
        generator = build(for_codes(preset("generator", "tiny_mar"), spec, num_classes=3))
    except IncompatibleError:
        pytest.skip("no any-order generator takes two grids")
    with pytest.raises(IncompatibleError, match="one grid"):
        Masked(order="local").check(generator)
