"""Known codes in sequential decoding: kept as they are, fed at once, heard by what comes after."""

import pytest
import torch

from argen.build import build
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.errors import IncompatibleError, SpecError, UserError
from argen.layers.noise import SeededNoise
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

PLAIN = CodeSpec("discrete", (Segment((4, 4), vocab_sizes=(32,)),))
SUBS = CodeSpec("discrete", (Segment((4, 4), vocab_sizes=(4, 8)),))
SPECS = {"tiny_open_magvit2": SUBS}
NAMES = ["tiny_gpt", "tiny_ibq", "tiny_net2net", "tiny_rar", "tiny_open_magvit2", "tiny_elm"]


def make(name):
    torch.manual_seed(0)
    spec = SPECS.get(name, PLAIN)
    model = build(for_codes(preset("generator", name), spec, num_classes=5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def codes_of(spec, rows):
    sizes = spec.segments[0].vocab_sizes
    columns = [torch.randint(v, (rows, spec.length)) for v in sizes]
    return columns[0] if len(columns) == 1 else torch.stack(columns, dim=-1)


def draw(model, *, known=None, scale=2.0, order="plan", seeds=(1, 2, 3), observer=None):
    return Sequential(order)(
        model,
        model.conditioner(torch.tensor([0, 3, 1])),
        SamplingContext(
            guidance=Guidance(scale),
            filters=Filters(),
            noise=SeededNoise(seeds),
            known=known,
            observer=observer,
        ),
    )


@pytest.mark.parametrize("name", NAMES)
def test_known_codes_are_kept_and_the_rest_is_drawn_as_ever(name):
    model = make(name)
    sampled = [p for group in model.plan.groups for p in group]
    free = draw(model)
    assert free.passes == 16
    # What a model drew itself, given back in part, makes it sample the same rest.
    for positions in (
        sampled[:8],
        sampled[3:9],
        [sampled[0], sampled[5], sampled[6], sampled[15]],
        sampled,
    ):
        at = torch.tensor(positions)
        result = draw(model, known=(at, free.codes[:, at]))
        assert torch.equal(result.codes, free.codes)
        assert result.passes == 16 - len(positions)


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_after_hears_known_codes(name):
    model = make(name)
    sampled = [p for group in model.plan.groups for p in group]
    at, given = torch.tensor(sampled[4:8]), codes_of(model.spec, 3)
    free = draw(model)
    seen = []
    result = draw(
        model,
        known=(at, given[:, at]),
        observer=lambda positions, codes, outputs: seen.append(positions),
    )
    assert torch.equal(result.codes[:, at], given[:, at])
    before, after = torch.tensor(sampled[:4]), torch.tensor(sampled[8:])
    assert torch.equal(result.codes[:, before], free.codes[:, before])
    assert not torch.equal(result.codes[:, after], free.codes[:, after])
    assert sorted(torch.cat(seen).tolist()) == sorted(sampled[:4] + sampled[8:])


def test_samples_may_have_different_known_positions():
    model, given = make("tiny_gpt"), codes_of(PLAIN, 3)
    at = torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5], [15, 3, 2, 9]])
    result = draw(model, known=(at, given.gather(1, at)))
    assert torch.equal(result.codes.gather(1, at), given.gather(1, at))
    assert result.passes == 16 - 2  # only 2 and 3 are known to all
    for row in range(3):
        alone = Sequential()(
            model,
            model.conditioner(torch.tensor([[0, 3, 1][row]])),
            SamplingContext(
                guidance=Guidance(2.0),
                filters=Filters(),
                noise=SeededNoise([row + 1]),
                known=(at[row], given[row, at[row]]),
            ),
        )
        assert torch.equal(alone.codes[0], result.codes[row])


def test_known_first_lets_every_code_hear_the_known_ones():
    model, given = make("tiny_rar"), codes_of(PLAIN, 3)
    at = torch.tensor([[12, 13, 14], [1, 7, 15], [0, 1, 2]])
    known = (at, given.gather(1, at))
    seen = []
    result = draw(
        model,
        known=known,
        order="known_first",
        observer=lambda positions, codes, outputs: seen.append(positions),
    )
    assert torch.equal(result.codes.gather(1, at), known[1])
    assert result.passes == 13
    orders = torch.cat(seen, dim=1)
    assert orders[0].tolist() == [p for p in range(16) if p not in at[0].tolist()]
    other = (at, (known[1] + 1) % 32)
    assert not torch.equal(
        draw(model, known=other, order="known_first").codes[0, :12], result.codes[0, :12]
    )
    # In the plan's order nothing before a known code can hear it.
    assert torch.equal(
        draw(model, known=other).codes[0, :12], draw(model, known=known).codes[0, :12]
    )


def test_what_is_wrong_with_known_codes_is_said():
    model, given = make("tiny_gpt"), codes_of(PLAIN, 3)
    at = torch.tensor([3, 4])
    with pytest.raises(UserError, match="do not match 2 known positions"):
        draw(model, known=(at, given[:, :3]))
    with pytest.raises(UserError, match="repeat"):
        draw(model, known=(torch.tensor([3, 3]), given[:, at]))
    with pytest.raises(UserError, match=r"\[0, 15\]"):
        draw(model, known=(torch.tensor([3, 16]), given[:, at]))
    with pytest.raises(SpecError, match="vocabulary"):
        draw(model, known=(at, given[:, at] + 32))
    with pytest.raises(UserError, match="needs known codes"):
        draw(make("tiny_rar"), order="known_first")
    with pytest.raises(IncompatibleError, match="RAR"):
        draw(model, order="random")
    with pytest.raises(UserError, match="known_first"):
        Sequential(order="raster")
