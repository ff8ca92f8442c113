"""Look-ahead strategies on real networks: same greedy codes, batch independence, errors."""

import pytest
import torch

from argen.build import build
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.decoding.speculative.draft_model import Speculative
from argen.decoding.speculative.jacobi import GroupedJacobi, Jacobi
from argen.decoding.speculative.proactive import Proactive
from argen.errors import IncompatibleError, UserError
from argen.generators.conditioning import TextConditioner
from argen.layers.noise import SeededNoise
from argen.runtime.presets import for_codes, preset, preset_names
from argen.spec import CodeSpec, Segment
from argen.text.features import TextFeatures

SPECS = [
    CodeSpec("discrete", (Segment((4, 4), vocab_sizes=(24,), dim=4),)),
    CodeSpec("discrete", (Segment((4, 4), vocab_sizes=(4, 16), dim=4),)),
    CodeSpec("binary", (Segment((4, 4), bits=6, dim=6),)),
]


def make(name, *, seed=0, spec=None, perturb=0.3):
    """Build a tiny preset for the first codes it takes, with distributions far from uniform."""
    torch.manual_seed(seed)
    for own in [spec] if spec else SPECS:
        try:
            generator = build(for_codes(preset("generator", name), own, num_classes=3))
        except UserError:
            continue
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.add_(torch.randn_like(parameter) * perturb)
        return generator.eval()
    return None


def lookahead_presets():
    """Return (preset, code language) of every tiny generator that can score drafts."""
    pairs = []
    for name in preset_names("generator"):
        for spec in SPECS if name.startswith("tiny_") else ():
            generator = make(name, spec=spec)
            if generator is not None and generator.plan.lookahead and generator.head.id_sizes:
                pairs.append((name, spec))
    return pairs


def conditions(conditioner, labels):
    """Return what stands for labels, also where texts are read: features of their own for each."""
    if not isinstance(conditioner, TextConditioner):
        return conditioner(torch.tensor(labels))
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(9, conditioner.length, conditioner.feature_dim, generator=rng)
    mask = torch.ones(len(labels), conditioner.length, dtype=torch.bool)
    return conditioner(TextFeatures(features[labels], mask))


def draw(decoder, generator, labels, seeds, *, guidance=None, filters=None, observer=None):
    return decoder(
        generator,
        conditions(generator.conditioner, labels),
        SamplingContext(
            guidance=guidance or Guidance(),
            filters=filters or Filters(),
            noise=SeededNoise(seeds),
            observer=observer,
        ),
    )


@pytest.fixture(scope="module")
def gpt():
    return make("tiny_gpt")


DECODERS = [
    Jacobi(),
    Jacobi(window=5, coupling="gumbel", guess="left"),
    Jacobi(window=16, coupling="none", guess="one_hot"),
    Jacobi(window=6, coupling="none", interval=(1, 12)),
    Proactive(window=7, width=2, depth=2),
]


PAIRS = lookahead_presets()


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.5, "linear")], ids=["plain", "cfg"])
@pytest.mark.parametrize(("name", "spec"), PAIRS, ids=[f"{n}-{s.kind}" for n, s in PAIRS])
def test_greedy_codes_are_those_of_sequential_decoding(name, spec, guidance):
    generator, settings = make(name, spec=spec), {"filters": Filters(temperature=0.0)}
    if generator.conditioner.has_null:
        settings["guidance"] = guidance
    decoders = [*DECODERS[:2], Speculative(make(name, spec=spec, seed=1), window=4)]
    if len(generator.head.id_sizes) == 1:
        decoders.append(Proactive(window=6, width=3, depth=2))
    expected = draw(Sequential(), generator, [0, 1, 2], [0, 1, 2], **settings).codes
    for decoder in decoders:
        decoder.check(generator)
        together = draw(decoder, generator, [0, 1, 2], [0, 1, 2], **settings).codes
        assert torch.equal(together, expected)
    alone = draw(decoders[0], generator, [1], [1], **settings).codes
    assert torch.equal(alone, expected[1:2])


def test_every_kind_of_code_is_covered():
    assert {spec for _, spec in PAIRS} == set(SPECS)


@pytest.mark.parametrize("decoder", DECODERS, ids=range(len(DECODERS)))
def test_a_image_is_the_same_in_any_batch(decoder, gpt):
    guidance, filters = Guidance(1.5), Filters(top_k=12)
    together = draw(decoder, gpt, [0, 1, 2], [5, 6, 7], guidance=guidance, filters=filters)
    for row in range(3):
        alone = draw(decoder, gpt, [row], [5 + row], guidance=guidance, filters=filters)
        assert torch.equal(alone.codes[0], together.codes[row])
        own = together.accepted[:, row]
        assert own[own > 0].tolist() == alone.accepted[:, 0].tolist()


@pytest.mark.parametrize("decoder", DECODERS, ids=range(len(DECODERS)))
def test_every_code_is_finished_once(decoder, gpt):
    seen = torch.full((2, 16), -1)

    def observer(positions, codes, outputs):
        assert outputs.shape == (*codes.shape, 24)
        for row, slot in (positions >= 0).nonzero().tolist():
            assert seen[row, positions[row, slot]] == -1
            seen[row, positions[row, slot]] = codes[row, slot]

    result = draw(decoder, gpt, [0, 2], [1, 2], observer=observer)
    assert torch.equal(seen, result.codes)
    assert result.accepted.shape == (result.passes, 2)
    assert result.accepted.sum(0).tolist() == [16, 16]


def test_uniform_distributions_keep_every_guess():
    """Where every distribution is uniform, a guess is a sample: a pass finishes a whole window."""
    generator = make("tiny_gpt", perturb=0.0)
    result = draw(Jacobi(window=6), generator, [0, 1], [0, 1])
    assert result.passes == 3
    assert result.accepted.tolist() == [[6, 6], [6, 6], [4, 4]]


def test_a_perfect_draft_model_is_always_kept(gpt):
    result = draw(Speculative(gpt, window=6), gpt, [0, 1], [0, 1], guidance=Guidance(2.0))
    assert result.accepted.tolist() == [[6, 6], [6, 6], [4, 4]]


def test_grouped_keeps_more_than_rejection(gpt):
    options = {"coupling": "none", "guess": "uniform", "window": 8}
    labels, seeds = [0] * 64, list(range(64))
    strict = draw(Jacobi(**options), gpt, labels, seeds).accepted
    everything = {"p_threshold": 1.0, "d_threshold": float("inf")}
    loose = draw(GroupedJacobi(**options, half_width=6, **everything), gpt, labels, seeds).accepted
    assert (loose > 0).sum() < (strict > 0).sum()  # passes, over all rows
    assert not GroupedJacobi().exact


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (Jacobi(window=17), "longer than the 16 codes"),
        (Speculative(), "needs a draft model"),
    ],
)
def test_what_does_not_fit_is_refused(decoder, message, gpt):
    with pytest.raises(UserError, match=message):
        decoder.check(gpt)


def test_senseless_options_are_refused():
    for options, message in [
        ({"window": 1}, "at least one draft"),
        ({"coupling": "tight"}, "Unknown coupling"),
        ({"guess": "right"}, "Unknown guess"),
    ]:
        with pytest.raises(UserError, match=message):
            Jacobi(**options)


def test_drafts_of_another_tokenizer_are_refused(gpt):
    other = make("tiny_gpt", spec=CodeSpec("discrete", (Segment((4, 4), vocab_sizes=(25,)),)))
    with pytest.raises(UserError, match="draft model"):
        Speculative(other).check(gpt)


def test_grouped_takes_the_embeddings_of_each_generator(gpt):
    decoder, other = GroupedJacobi(), make("tiny_gpt", seed=5)
    for generator in (gpt, other):
        decoder.check(generator)
        assert decoder.acceptance.vectors is generator.embed.weight
    with pytest.raises(IncompatibleError, match="no plain table"):
        decoder.check(make("tiny_open_magvit2"))


@pytest.mark.parametrize(("name", "fits"), [("tiny_mar", "masked"), ("tiny_var", "sequential")])
def test_generators_that_cannot_look_ahead_are_told_what_fits(name, fits):
    from argen.generators.plan import Plan

    generator = make("tiny_gpt")
    generator.plan = Plan(generator.plan.groups, lookahead=False, any_order=name == "tiny_mar")
    for decoder in (Jacobi(), GroupedJacobi(), Speculative()):
        with pytest.raises(IncompatibleError, match=f"decoder={fits}"):
            decoder.check(generator)


def test_guidance_needs_a_null_condition():
    config = for_codes(preset("generator", "tiny_gpt"), SPECS[0], num_classes=3)
    config["conditioner"]["drop_rate"] = 0.0
    with pytest.raises(UserError, match="null"):
        draw(Jacobi(), build(config).eval(), [0], [0], guidance=Guidance(2.0))


def test_lossy_strategies_are_refused_where_exact_ones_are_required():
    Jacobi().require_exact()
    Speculative().require_exact()
    with pytest.raises(UserError, match="not exact"):
        GroupedJacobi().require_exact()


def test_a_draft_model_is_read_from_its_directory(gpt, tmp_path):
    from argen.runtime.checkpoint import save_weights
    from argen.runtime.files import write_json

    config = {**gpt.config, "conditioner": gpt.conditioner.config}
    write_json(tmp_path / "config.json", {"generator": config})
    save_weights(gpt.state_dict(), tmp_path / "generator.safetensors")
    read = Speculative(str(tmp_path), window=6)
    assert draw(read, gpt, [0], [0]).accepted.tolist() == [[6], [6], [4]]
    with pytest.raises(UserError, match=r"no config\.json"):
        Speculative(str(tmp_path / "missing"))
