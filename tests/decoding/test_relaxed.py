"""LANTERN on real networks: exact without neighbours, refused where it does not fit."""

import pytest
import torch

from argen.build import build
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.decoding.speculative.relaxed import Relaxed
from argen.errors import CheckpointError, IncompatibleError, UserError
from argen.generators.conditioning import TextFeatures
from argen.generators.drafter.feature_drafter import load_drafter, save_drafter
from argen.generators.drafter.target import code_vectors, new_drafter, require_target
from argen.layers.noise import SeededNoise
from argen.layers.steps import arrange
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

SPEC = CodeSpec("discrete", (Segment((4, 4), vocab_sizes=(24,), dim=4),))
TEXT = {
    "_target_": "argen.generators.conditioning.TextConditioner",
    "feature_dim": 7,
    "dim": 64,
    "length": 5,
}


def make(name="tiny_gpt", **changes):
    torch.manual_seed(0)
    config = for_codes(preset("generator", name), SPEC, num_classes=3)
    generator = build({**config, **changes}).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return generator


def make_drafter(generator, **changes):
    torch.manual_seed(1)
    config = {
        "_target_": "argen.generators.drafter.feature_drafter.FeatureDrafter",
        "spec": SPEC.to_dict(),
        "dim": 64,
        "heads": 4,
        "ffn_hidden": 96,
        "prefix_length": generator.prefix_length,
    }
    drafter = build({**config, **changes})
    drafter.embed.weight.data.copy_(generator.embed.weight[:24])
    return drafter


def condition(generator, rows):
    if generator.prefix_length == 5:
        mask = torch.arange(5) >= torch.arange(rows)[:, None]
        return generator.conditioner(TextFeatures(torch.randn(rows, 5, 7), mask))
    return generator.conditioner(torch.arange(rows))


def draw(decoder, generator, cond, **settings):
    return decoder(
        generator,
        cond,
        SamplingContext(
            guidance=settings.get("guidance", Guidance()),
            filters=settings.get("filters", Filters()),
            noise=SeededNoise(range(len(cond))),
            observer=settings.get("observer"),
        ),
    )


TREES = [
    {"tree": "dynamic", "nodes": 12, "width": 3, "steps": 2},
    {"tree": "static", "nodes": 9, "width": 3, "steps": 2},
    {"tree": "static", "branches": [[0], [0, 0], [0, 0, 0]]},
]


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.0, "linear")], ids=["plain", "cfg"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [("tiny_gpt", {}), ("tiny_gpt", {"conditioner": TEXT}), ("tiny_rar", {})],
    ids=["classes", "text", "rar"],
)
def test_greedy_codes_are_those_of_sequential_decoding(name, changes, guidance):
    generator = make(name, **changes)
    drafter, settings = make_drafter(generator), {"filters": Filters(temperature=0.0)}
    cond = condition(generator, 2)
    expected = draw(Sequential(), generator, cond, guidance=guidance, **settings).codes
    for tree in TREES:
        result = draw(Relaxed(drafter, k=0, **tree), generator, cond, guidance=guidance, **settings)
        assert torch.equal(result.codes, expected)
        assert result.accepted.sum(0).tolist() == [16, 16]


@pytest.mark.parametrize("tree", TREES, ids=range(len(TREES)))
def test_every_code_is_finished_once_and_batches_do_not_matter(tree):
    generator = make()
    decoder, cond = Relaxed(make_drafter(generator), k=0, **tree), condition(generator, 2)
    seen = torch.full((2, 16), -1)

    def observer(positions, codes, outputs):
        assert outputs.shape == (*codes.shape, 24)
        for row, slot in (positions >= 0).nonzero().tolist():
            assert seen[row, positions[row, slot]] == -1
            seen[row, positions[row, slot]] = codes[row, slot]

    settings = {"guidance": Guidance(1.5), "filters": Filters(top_k=10)}
    result = draw(decoder, generator, cond, observer=observer, **settings)
    assert torch.equal(seen, result.codes)
    alone = draw(decoder, generator, cond.rows(slice(0, 1)), **settings)
    assert torch.equal(alone.codes, result.codes[:1])


def test_a_trained_drafter_is_kept_more_often():
    generator = make().requires_grad_(False)
    drafter = make_drafter(generator)
    conds = condition(generator, 3).rows(torch.arange(24) % 3)
    codes = draw(Sequential(), generator, conds).codes

    def passes():
        decoder = Relaxed(drafter.eval(), k=0, nodes=8, width=4, steps=1)
        return sum((draw(decoder, generator, conds).accepted > 0).sum(0).tolist())

    before = passes()
    trained = [p for p in drafter.parameters() if p.requires_grad]
    assert len(trained) == len(list(drafter.parameters())) - 1  # the embedding is frozen
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    losses = []
    for _ in range(30):
        output = drafter.loss(generator, codes, conds)
        assert output.nll.shape == (24, 15)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.metrics["logit"]))
    assert losses[-1] < losses[0]
    assert passes() < before


@pytest.mark.parametrize("name", ["tiny_gpt", "tiny_ibq", "tiny_rar", "tiny_net2net"])
def test_a_drafter_is_fitted_to_its_target(name):
    generator = make(name, **({"order": "spiral_in"} if name == "tiny_net2net" else {}))
    generator.requires_grad_(False)
    drafter = new_drafter(preset("drafter", "eagle") | {"loss": None}, require_target(generator))
    cond, codes = condition(generator, 3), torch.randint(24, (3, 16))
    Relaxed(drafter, k=0).check(generator)
    # Row 0 of the drafter predicts the vector behind the second code from that of the first.
    sampled = arrange(codes, generator.order)
    hidden = generator.hidden(sampled, cond, order=generator.order)
    assert torch.equal(drafter.embed.weight, code_vectors(generator, 24))
    skip = drafter.prefix_rows
    places = torch.arange(15) + skip
    if not skip:
        found = drafter.next_hidden(sampled[:, :-1], hidden[:, :-1], places)
        wanted = torch.nn.functional.smooth_l1_loss(found, hidden[:, 1:])
        output = drafter.loss(generator, codes, cond, noise_scale=0.0)
        torch.testing.assert_close(output.metrics["feature"], wanted)
    output = drafter.loss(generator, codes, cond)
    assert 0 < output.metrics["kept"] < 1
    output.loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in drafter.parameters())


class Codebook:
    """A tokenizer's codebook and nothing else."""

    def __init__(self, codes):
        self.quantizer = torch.nn.Module()
        self.quantizer.codebook = torch.nn.Embedding(codes, 4)


def test_neighbours_let_more_drafts_pass():
    generator = make()
    drafter, cond = make_drafter(generator), condition(generator, 3)
    many = cond.rows(torch.arange(30) % 3)
    strict = Relaxed(drafter, k=0, nodes=12, width=4, steps=2)
    loose = Relaxed(drafter, k=20, delta=0.9, nodes=12, width=4, steps=2)
    with pytest.raises(UserError, match="bind the tokenizer"):
        loose.check(generator)
    loose.bind(Codebook(24))
    passes = [(draw(d, generator, many).accepted > 0).sum() for d in (strict, loose)]
    assert passes[1] < passes[0]
    assert strict.exact
    assert not loose.exact
    with pytest.raises(UserError, match="not exact"):
        loose.require_exact()


def test_what_does_not_fit_is_refused():
    generator = make()
    with pytest.raises(UserError, match="needs a drafter"):
        Relaxed(k=0).check(generator)
    with pytest.raises(IncompatibleError, match="Train a drafter"):
        Relaxed(make_drafter(generator, prefix_length=4), k=0).check(generator)
    with pytest.raises(IncompatibleError, match="one codebook"):
        Relaxed(k=3).bind(torch.nn.Module())
    with pytest.raises(UserError, match="at most 22"):
        Relaxed(k=23).bind(Codebook(24))
    for options in ({"tree": "round"}, {"nodes": 0}, {"branches": [[0]]}, {"k": -1}):
        with pytest.raises(UserError):
            Relaxed(**options)


def test_drafters_are_saved_and_read(tmp_path):
    generator = make()
    drafter = make_drafter(generator)
    save_drafter(drafter, tmp_path)
    read = load_drafter(tmp_path)
    for a, b in zip(drafter.state_dict().values(), read.state_dict().values()):
        assert torch.equal(a, b)
    Relaxed(str(tmp_path), k=0).check(generator)
    with pytest.raises(CheckpointError, match="no drafter"):
        load_drafter(tmp_path / "elsewhere")
