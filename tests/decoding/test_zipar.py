import pytest
import torch

from argen.build import build
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.decoding.zipar import ZipAR, schedule
from argen.errors import IncompatibleError, UserError
from argen.layers.noise import SeededNoise
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

GRID = CodeSpec("discrete", (Segment((4, 6), vocab_sizes=(20,), dim=4),))


def make(name="tiny_gpt", spec=GRID):
    torch.manual_seed(0)
    generator = build(for_codes(preset("generator", name), spec, num_classes=3)).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return generator


def draw(decoder, generator, **settings):
    return decoder(
        generator,
        generator.conditioner(torch.tensor([0, 2])),
        SamplingContext(
            guidance=settings.get("guidance", Guidance()),
            filters=Filters(top_k=15),
            noise=SeededNoise([3, 4]),
            observer=settings.get("observer"),
        ),
    )


@pytest.mark.parametrize("grid", [(4, 6), (1, 5), (5, 2), (16, 16)])
@pytest.mark.parametrize("window", [1, 2, 5, 16])
def test_every_position_is_drawn_once_and_passes_are_as_stated(grid, window):
    h, w = grid
    passes = schedule(grid, window)
    assert sorted(p for sampled, _, _ in passes for p in sampled) == list(range(h * w))
    assert len(passes) == w + (h - 1) * min(window, w)
    drawn_before = set()
    for number, (sampled, sources, steps) in enumerate(passes):
        assert len(sources) == len(steps) >= len(sampled)
        assert steps[: len(sampled)] == [p - 1 for p in sampled]
        assert number == 0 or set(sources) <= drawn_before
        drawn_before |= set(sampled)


def test_every_code_is_fed_at_its_own_place():
    passes = schedule((4, 6), 2)
    own = {
        step
        for sampled, sources, steps in passes
        for source, step in zip(sources, steps)
        if source == step
    }
    # The ends of rows too, once they are there; only the last code is never fed.
    assert own == set(range(23))


@pytest.mark.parametrize("name", ["tiny_gpt", "tiny_open_magvit2"])
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.0, "linear")], ids=["plain", "cfg"])
def test_a_window_as_wide_as_the_grid_is_sequential_decoding(name, guidance):
    subs = CodeSpec("discrete", (Segment((4, 6), vocab_sizes=(4, 8), dim=4),))
    generator = make(name, GRID if name == "tiny_gpt" else subs)
    seen = torch.full_like(draw(Sequential(), generator, guidance=guidance).codes, -1)

    def observer(positions, codes, outputs):
        assert (seen[:, positions] == -1).all()
        seen[:, positions] = codes

    wide = draw(ZipAR(6), generator, guidance=guidance, observer=observer)
    assert torch.equal(wide.codes, draw(Sequential(), generator, guidance=guidance).codes)
    assert torch.equal(seen, wide.codes)


def test_a_narrow_window_is_faster_and_different():
    generator = make()
    narrow, plain = draw(ZipAR(2), generator), draw(Sequential(), generator)
    assert narrow.passes == 12 < plain.passes == 24
    # The first row has all it needs.
    assert torch.equal(narrow.codes[:, :6], plain.codes[:, :6])
    assert not torch.equal(narrow.codes, plain.codes)
    assert not ZipAR(2).exact
    generator.spec.check(narrow.codes)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="wider than the grid"):
        ZipAR(7).check(make())
    with pytest.raises(UserError, match="at least one"):
        ZipAR(0)
    line = CodeSpec("discrete", (Segment((1, 24), vocab_sizes=(20,)),))
    with pytest.raises(IncompatibleError, match="sequential"):
        ZipAR(2).check(make(spec=line))


def test_projected_guidance_takes_rising_weights():
    generator = make()
    settings = {"guidance": Guidance(3.0, "linear", parallel=0.2)}
    expected = draw(Sequential(), generator, **settings).codes
    assert torch.equal(draw(ZipAR(6), generator, **settings).codes, expected)
    plain = {"guidance": Guidance(3.0, "linear")}
    assert not torch.equal(draw(ZipAR(6), generator, **plain).codes, expected)
