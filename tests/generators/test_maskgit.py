import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from argen.build import build
from argen.errors import CheckpointError, IncompatibleError, UserError
from argen.generators.conditioning import TextConditioner, TextFeatures
from argen.generators.maskgit.halton import halton_grid, halton_order
from argen.generators.maskgit.mask_schedule import (
    SCHEDULES,
    group_sizes,
    unknown_after,
    unknown_share,
)
from argen.generators.maskgit.maskgit import masked_accuracy, masked_loss
from argen.interop import maskgit
from argen.layers.noise import SeededNoise
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("tiny_maskgit", "tiny_maskgit_uvit")
GRID = CodeSpec("discrete", (Segment((4, 5), vocab_sizes=(12,)),))


def make(name="tiny_maskgit", spec=GRID, **options):
    torch.manual_seed(0)
    config = {**preset("generator", name), **options}
    return build(for_codes(config, spec, num_classes=3)).eval()


def some_codes(rows=3, spec=GRID):
    draws = torch.Generator().manual_seed(0)
    return torch.randint(spec.vocab_size, (rows, spec.length), generator=draws)


def test_masks_hide_what_the_schedule_says():
    generator, codes = make(), some_codes(2000)
    ids, masked = generator.mask(codes, SeededNoise(range(2000)))
    assert torch.equal(ids == generator.mask_id, masked)
    assert torch.equal(ids[~masked], codes[~masked])
    count = masked.sum(1)
    assert count.min() == 1
    assert count.max() == GRID.length
    # The mean of acos(t) / (pi / 2) over t in (0, 1) is 2 / pi.
    assert count.float().mean() / GRID.length == pytest.approx(2 / math.pi, abs=0.02)
    # Every position is as likely to be hidden as any other.
    assert masked.float().mean(0).std() < 0.03
    again, _ = generator.mask(codes[5:6], SeededNoise([5]))
    assert torch.equal(again, ids[5:6])
    fresh = [generator.mask(codes[:4])[0] for _ in range(2)]
    assert not torch.equal(*fresh)


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.1, 1.0])
def test_loss_weighs_masked_places(unmasked_weight):
    logits, codes = torch.randn(2, 6, 5), torch.randint(5, (2, 6))
    masked = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
    options = {"label_smoothing": 0.2, "unmasked_weight": unmasked_weight}
    loss, nll = masked_loss(logits, codes, masked, **options)
    log_p = logits.log_softmax(-1)
    expected = -0.8 * log_p.gather(-1, codes[..., None])[..., 0] - 0.2 * log_p.mean(-1)
    torch.testing.assert_close(nll, expected)
    share = 3 / (3 + 9 * unmasked_weight)
    mean = share * expected[masked].mean() + (1 - share) * expected[~masked].mean()
    torch.testing.assert_close(loss, mean, rtol=1e-5, atol=1e-6)


def test_accuracy_counts_masked_places_alone():
    codes = torch.tensor([[0, 1, 2, 3]])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 1, 0, 3]]), 4).float()
    masked = torch.tensor([[True, False, True, True]])
    assert masked_accuracy(logits, codes, masked) == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", NAMES)
def test_asks_for_the_places_it_is_told(name):
    generator, codes = make(name), some_codes(2)
    cond = generator.conditioner(torch.tensor([0, 2]))
    state = generator.start(cond)
    first = torch.tensor([[3, 7], [0, 19]])
    generator.commit(state, codes.gather(1, first), positions=first)
    ids = torch.full_like(codes, generator.mask_id).scatter(1, first, codes.gather(1, first))
    asked = torch.tensor([[5, 4, 1], [9, 2, 2]])
    with torch.no_grad():
        found = generator.predict(state, positions=asked)
        whole = generator.logits(ids, cond)
    expected = whole.gather(1, asked[..., None].expand(-1, -1, 12))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for call in (
        lambda: generator.start(cond, longest_draft=2),
        lambda: generator.predict(state, codes[:, :2]),
        lambda: generator.commit(state, codes[:, :2], torch.tensor([1, 2])),
    ):
        with pytest.raises(IncompatibleError, match="decoder=confidence"):
            call()


def text_condition(padded=0.0):
    torch.manual_seed(0)
    features = torch.randn(2, 4, 6)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    return TextFeatures(features + padded * (~mask)[..., None], mask)


@pytest.mark.parametrize("name", NAMES)
def test_padded_text_is_not_read(name):
    torch.manual_seed(0)
    config = {**preset("generator", name), "conditioner": TextConditioner(6, 64, length=4)}
    generator = build({**config, "spec": GRID}).eval()
    codes = some_codes(2)
    with torch.no_grad():
        one, other = (
            generator.logits(codes, generator.conditioner(text_condition(p))) for p in (0.0, 9.0)
        )
    torch.testing.assert_close(one, other)
    assert generator.positions.shape[0] == 4 + GRID.length


def plain(vocab):
    return Segment((2, 2), vocab_sizes=vocab, dim=2)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (CodeSpec("discrete", (plain((4, 4)),)), "factorised head"),
        (CodeSpec("discrete", (plain((4,)), plain((8,)))), "one codebook"),
        (CodeSpec("continuous", (Segment((2, 2), dim=2),)), "models ids codes|discrete"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_other_codes_are_refused(name, spec, match):
    with pytest.raises(IncompatibleError, match=match):
        make(name, spec)


def test_a_uvit_needs_both_halves():
    with pytest.raises(UserError, match="layers=1"):
        make("tiny_maskgit_uvit", layers=1)
    assert len(make("tiny_maskgit_uvit", layers=5).out_blocks) == 2


def test_early_states_reach_the_late_blocks():
    generator, cond = make("tiny_maskgit_uvit"), None
    cond = generator.conditioner(torch.tensor([0]))
    codes = some_codes(1)
    with torch.no_grad():
        before = generator.logits(codes, cond)
        generator.out_blocks[0].skip.weight[:, 64:] = 0  # the half that reads the early state
        assert not torch.allclose(generator.logits(codes, cond), before)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_schedules_fall_from_all_to_none(schedule):
    share = unknown_share(schedule, torch.linspace(0, 1, 101, dtype=torch.float64))
    assert share[0] == pytest.approx(1)
    assert share[-1] == pytest.approx(0, abs=1e-9)
    assert (share.diff() < 0).all()


def test_arccos_reveals_few_codes_first_and_linear_evenly():
    assert group_sizes("linear", 32, 8) == [4] * 8
    arccos = group_sizes("arccos", 256, 8)
    assert sum(arccos) == 256
    assert arccos == [21, 21, 21, 23, 25, 28, 35, 82]
    assert group_sizes("root", 64, 4) == [32, 14, 10, 8]


@pytest.mark.parametrize("steps", [1, 3, 10, 25])
def test_every_step_draws_while_there_is_something_to_draw(steps):
    sizes = group_sizes("cosine", 10, steps)
    assert sum(sizes) == 10
    assert min(sizes) >= 1
    assert len(sizes) <= min(steps, 10)
    assert unknown_after("cosine", 10, steps - 1, steps, unknown=4) == 0
    with pytest.raises(UserError, match="Did you mean 'arccos'"):
        make(mask_schedule="arcos")


def test_halton_order_spreads_out():
    order = halton_grid(16, 16)
    assert sorted(order) == list(range(256))
    for n in (16, 64):
        side = round(n**0.5)
        cells = {((p // 16) * side // 16, (p % 16) * side // 16) for p in order[:n]}
        assert len(cells) > 0.7 * n  # of n equal cells of the image
    assert halton_grid(1, 8) == [4, 2, 6, 1, 5, 3, 7, 0]
    assert halton_grid(8, 1) == halton_grid(1, 8)


def test_halton_order_interleaves_segments():
    spec = CodeSpec("discrete", (plain((4,)), Segment((4, 4), vocab_sizes=(4,))))
    order = halton_order(spec)
    assert sorted(order) == list(range(20))
    assert sum(p < 4 for p in order[:10]) == 2


@pytest.mark.parametrize(("name", "heads"), [("maskgit-bert", 4), ("maskgit-uvit", 4)])
def test_every_size_is_read_off_a_released_file(name, heads):
    weights, io = (
        load_file(str(GOLDEN / name / f"{part}.safetensors")) for part in ("weights", "io")
    )
    extra = {"model.embeddings.position_ids": torch.zeros(1, 5)} if "bert" in name else {}
    imported = maskgit.import_generator(
        {"model": {**weights, **extra}}, source=name, heads=heads, code_dim=12
    )
    generator = imported.build()
    cond = generator.conditioner(io["class_labels"])
    with torch.no_grad():
        logits = generator.logits(io["masked_tokens"], cond)
        null = generator.logits(io["masked_tokens"], generator.conditioner.null(cond))
    torch.testing.assert_close(logits, io["logits_cond"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(null, io["logits_null"], rtol=1e-4, atol=1e-4)
    assert generator.conditioner.num_classes == 10
    with pytest.raises(UserError, match="heads=N"):
        maskgit.import_generator(weights, source=name)
    with pytest.raises(CheckpointError, match="not a MaskGIT generator"):
        maskgit.import_generator({"a": torch.zeros(1)}, source=name)


def test_unknown_model_types_are_refused():
    config = {
        "model": {
            "vq_model": {"codebook_size": 4},
            "generator": {"image_seq_len": 4, "model_type": "DiT"},
        }
    }
    with pytest.raises(UserError, match="'DiT'"):
        maskgit.generator_config(config)
