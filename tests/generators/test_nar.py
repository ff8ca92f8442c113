from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.errors import CheckpointError, IncompatibleError, UserError
from argen.generators.conditioning import ClassConditioner, TextConditioner, TextFeatures
from argen.generators.nar import NAR
from argen.generators.plan import Plan
from argen.interop import nar
from argen.layers.noise import SeededNoise
from argen.spec import CodeSpec, Segment

GOLDEN = Path(__file__).parent.parent / "golden" / "nar-c2i"


def make(grid=(3, 5), conditioner=None, **options):
    torch.manual_seed(0)
    generator = NAR(
        spec=CodeSpec("discrete", (Segment(grid, (20,), dim=4),)),
        conditioner=conditioner or ClassConditioner(5, 32),
        **{"dim": 32, "layers": 2, "heads": 4, "multiple_of": 16, **options},
    )
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return generator.eval()


def text_inputs(rows=2):
    mask = torch.ones(rows, 6, dtype=torch.bool)
    mask[0, :2] = False  # padded on the left
    return TextFeatures(torch.randn(rows, 6, 8), mask)


def test_diagonals_run_from_top_right_down():
    assert Plan.diagonals((2, 3)).groups == ((0,), (1, 3), (2, 4), (5,))
    assert Plan.diagonals((1, 3)).groups == ((0,), (1,), (2,))
    assert len(Plan.diagonals((16, 16)).groups) == 31


@pytest.mark.parametrize("grid", [(3, 5), (5, 3), (4, 4), (1, 6), (6, 1)])
@pytest.mark.parametrize("options", [{}, {"kv_heads": 2, "down_layers": 3}, {"down_layers": 0}])
def test_one_pass_a_diagonal_equals_teacher_forcing(grid, options):
    generator = make(grid, **options)
    codes = torch.randint(20, (2, grid[0] * grid[1]))
    cond = generator.conditioner(torch.tensor([1, 2]))
    with torch.no_grad():
        expected, state = generator.score(codes, cond), generator.start(cond)
        for group in generator.plan.groups:
            torch.testing.assert_close(generator.predict(state), expected[:, list(group)])
            generator.commit(state, codes[:, list(group)])
    assert state.step == sum(grid) - 1


def test_padded_text_is_hidden_in_both_forms():
    conditioner = TextConditioner(8, 32, length=6, null_length=9)
    generator = make((3, 4), conditioner, condition_rope="identity")
    inputs, codes = text_inputs(), torch.randint(20, (2, 12))
    cond = conditioner(inputs)
    with torch.no_grad():
        expected, state = generator.score(codes, cond), generator.start(cond)
        for group in generator.plan.groups:
            torch.testing.assert_close(generator.predict(state), expected[:, list(group)])
            generator.commit(state, codes[:, list(group)])
        other = inputs.features_BTF.clone()
        other[0, :2] += 3.0
        moved = generator.score(codes, conditioner(TextFeatures(other, inputs.mask_BT)))
        torch.testing.assert_close(moved, expected)
        other[0, 2] += 3.0
        moved = generator.score(codes, conditioner(TextFeatures(other, inputs.mask_BT)))
        assert (moved - expected)[0].abs().amax(-1).min() > 1e-4


def test_borders_use_one_head_and_the_inside_both():
    generator = make((3, 4))
    codes = torch.randint(20, (1, 12))
    cond = generator.conditioner(torch.tensor([1]))
    uses = []
    for head in (generator.head, generator.down_head):
        for place in range(12):
            logits = generator.score(codes, cond)[0, place]
            (grad,) = torch.autograd.grad(logits.sum(), head.proj.weight)
            uses.append(bool(grad.abs().sum() > 0))
    right, down = torch.tensor(uses).view(2, 3, 4)
    assert right.tolist() == [[True] * 4, [False] + [True] * 3, [False] + [True] * 3]
    assert down.tolist() == [[True] + [False] * 3, [True] * 4, [True] * 4]


def test_right_head_is_shallower():
    generator = make()
    codes, cond = torch.randint(20, (1, 15)), generator.conditioner(torch.tensor([1]))
    right, down = generator.hidden(codes, cond)
    last = generator.blocks[-1].ffn.out.weight
    assert torch.autograd.grad(right.sum(), last, allow_unused=True)[0] is None
    assert torch.autograd.grad(down.square().sum(), last)[0].abs().sum() > 0


def test_guidance_runs_through_the_null_class():
    generator = make()
    cond = generator.conditioner(torch.tensor([1]))
    draw = {"filters": Filters(temperature=0), "noise": SeededNoise([0])}
    plain = Sequential()(generator, cond, SamplingContext(guidance=Guidance(), **draw))
    strong = Sequential()(generator, cond, SamplingContext(guidance=Guidance(9.0), **draw))
    assert plain.passes == strong.passes == 7
    assert not torch.equal(plain.codes, strong.codes)


@pytest.mark.parametrize(
    ("segments", "told"),
    [
        ((Segment((1, 1), (8,)), Segment((4, 4), (8,))), "anti-diagonals of one grid"),
        ((Segment((4, 4), (8, 8)),), "predicts one id a position, but .* has 2"),
    ],
)
def test_other_codes_are_refused(segments, told):
    with pytest.raises(IncompatibleError, match=told):
        NAR(
            spec=CodeSpec("discrete", segments),
            conditioner=ClassConditioner(5, 32),
            dim=32,
            layers=1,
            heads=4,
        )


def test_released_files_tell_their_own_sizes():
    weights = load_file(str(GOLDEN / "weights.safetensors"))
    options = {"source": "nar.pt", "image_size": 64}
    with pytest.raises(UserError, match="2 layers of width 48, not a published size"):
        nar.import_generator({"model": weights}, **options)
    generator = nar.import_generator({"model": weights}, heads=4, **options).build()
    assert isinstance(generator, NAR)
    assert generator.spec.grid == (4, 4)
    assert (generator.right_layers, len(generator.blocks)) == (2, 3)
    assert generator.conditioner.num_classes == 10
    plain = {k: v for k, v in weights.items() if not k.startswith("medusa")}
    with pytest.raises(CheckpointError, match="not a NAR generator"):
        nar.import_generator(plain, **options)
