"""Proofs by enumeration: every outcome of a strategy's own code, against plain sampling.

Shapes: L codes, G sub-tokens, V vocabulary.
"""

import itertools

import pytest
import torch

from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.speculative.acceptance import GroupRejection
from argen.decoding.speculative.distributions import Distributions, guidance_table
from argen.decoding.speculative.draft_model import Speculative
from argen.decoding.speculative.jacobi import Jacobi
from argen.decoding.speculative.neighbours import NeighbourRejection, nearest_codes
from argen.decoding.speculative.proactive import Proactive
from argen.layers.noise import SeededNoise
from argen.testing.enumeration import Scripted, enumerate_decoder
from argen.testing.table import Table

PLAIN = (Guidance(), Filters())
FULL = (
    Guidance(2.0, "linear", start=0.5),
    Filters(temperature=0.8, top_k=3, top_p=0.9),
)


def all_codes(generator):
    sizes = generator.head.id_sizes
    ids = itertools.product(range(sizes[0]), repeat=generator.spec.length * len(sizes))
    return torch.tensor(list(ids)).view(-1, generator.spec.length, len(sizes))


def plain_joint(generator, cond, guidance, filters):
    """Return the distribution of sequential sampling, a product along each image."""
    ids = all_codes(generator)
    rows = guidance.rows(generator, cond)
    conds = rows.rows(torch.arange(len(rows)).repeat_interleave(len(ids)))
    outputs = generator.numbered(generator.head.to_codes(ids.repeat(len(rows), 1, 1)), conds)
    steps = torch.arange(generator.spec.length).expand(len(ids), -1)
    distributions = Distributions(
        generator.head, outputs, steps, guidance_table(guidance, generator), filters
    )
    return distributions.probs(ids).gather(-1, ids[..., None]).flatten(1).prod(1)


def variation(a, b):
    return float((a - b).detach().abs().sum() / 2)


def strategies(L, vocab, subs):
    draft = Table.random(length=L, vocab=vocab, classes=2, subs=subs, seed=9)
    return {
        "sjd": Jacobi(window=L, coupling="none", guess="one_hot"),
        "sjd, uniform guesses": Jacobi(window=L, coupling="none"),
        "maximal coupling": Jacobi(window=L),
        "maximal coupling, one-hot guesses": Jacobi(window=L, guess="one_hot"),
        "guesses from the left": Jacobi(window=L, guess="left"),
        "short window": Jacobi(window=2),
        "published interval": Jacobi(window=L, coupling="none", interval=(0, L - 1)),
        "draft model": Speculative(draft, window=L),
    } | (
        {
            "proactive tree": Proactive(window=L, width=2, depth=2),
            "wide proactive tree": Proactive(window=L, width=vocab, depth=1, guess="one_hot"),
        }
        if subs == 1
        else {}
    )


NAMES = list(strategies(2, 2, 1))


@pytest.mark.parametrize("settings", [PLAIN, FULL], ids=["plain", "guided and filtered"])
@pytest.mark.parametrize("toy", [(3, 4, 1), (4, 3, 1), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_joint_is_that_of_sequential_sampling(name, toy, settings):
    L, V, G = toy
    generator = Table.random(length=L, vocab=V, classes=2, subs=G)
    cond, (guidance, filters) = generator.conditioner(torch.tensor([0])), settings
    decoder = strategies(L, V, G).get(name)
    if decoder is None:
        pytest.skip("samples codes of one id")
    assert decoder.exact
    probs = enumerate_decoder(decoder, generator, cond, guidance=guidance, filters=filters)
    assert variation(probs.joint, plain_joint(generator, cond, guidance, filters)) < 1e-12
    assert probs.passes < L or (name == "published interval" and probs.passes <= L)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_exact_at_this_batch_size(name, batch):
    """Rows of a batch stand at different lengths; each must still follow its own distribution."""
    generator = Table.random(length=3, vocab=2, classes=2)
    cond, (guidance, filters) = generator.conditioner(torch.tensor([0])), FULL
    probs = enumerate_decoder(
        strategies(3, 2, 1)[name], generator, cond, guidance=guidance, filters=filters, batch=batch
    )
    assert variation(probs.joint, plain_joint(generator, cond, guidance, filters)) < 1e-12


@pytest.mark.parametrize(
    "acceptance",
    [
        GroupRejection(half_width=1, p_threshold=1.0, d_threshold=float("inf")),
        NeighbourRejection(k=2, delta=0.2, nearest=nearest_codes(torch.eye(4)[:, :2], 3)),
    ],
    ids=["grouped", "relaxed"],
)
def test_lossy_rules_differ_and_say_so(acceptance):
    generator = Table.random(length=3, vocab=4)
    cond = generator.conditioner(torch.tensor([0]))
    decoder = Jacobi(window=3, acceptance=acceptance)
    assert not decoder.exact
    probs = enumerate_decoder(decoder, generator, cond, guidance=Guidance(), filters=Filters())
    assert abs(float(probs.joint.sum()) - 1) < 1e-12
    distance = variation(probs.joint, plain_joint(generator, cond, Guidance(), Filters()))
    assert 1e-3 < distance < 0.45


def test_relaxed_rule_without_neighbours_is_exact():
    generator = Table.random(length=3, vocab=3)
    cond = generator.conditioner(torch.tensor([0]))
    decoder = Jacobi(window=3, acceptance=NeighbourRejection(k=0, delta=0.1))
    assert decoder.exact
    probs = enumerate_decoder(decoder, generator, cond, guidance=Guidance(), filters=Filters())
    assert variation(probs.joint, plain_joint(generator, cond, Guidance(), Filters())) < 1e-12


def coupled_joint(p, q):
    """Return P(argmax(log q + g) = x, argmax(log p + g) = y) as (x, y), for one Gumbel vector g.

    With E = exp(-g), x is the first arrival of times E / q and y that of E / p. For x != y, with
    r = E_y / E_x, what is left of the other arrivals is an integral over r of
    (1 + r + sum of max(q_v / q_x, r p_v / p_y))^-2, which is elementary between its corners.
    """
    V = len(p)
    joint = torch.zeros(V, V, dtype=torch.float64)
    for x, y in itertools.product(range(V), repeat=2):
        if not (q[x] > 0 and p[y] > 0):
            continue
        if x == y:
            joint[x, x] = 1 / torch.maximum(q / q[x], p / p[x]).sum()
            continue
        a, b = q / q[x], p / p[y]
        others = [v for v in range(V) if v not in (x, y)]
        low, high = a[y], 1 / b[x]  # y is not the first under q, x not under p
        if not low < high:
            continue
        corners = [c for v in others if low < (c := a[v] / b[v]) < high]
        ends = sorted([low, high, *corners])
        for start, end in itertools.pairwise(ends):
            middle = (start + min(end, start + 1)) / 2
            rising = [v for v in others if middle * b[v] > a[v]]
            fixed = 1 + sum(a[v] for v in others if v not in rising)
            slope = 1 + sum(b[v] for v in rising)
            before = 1 / (fixed + slope * start)
            after = 0.0 if end == float("inf") else 1 / (fixed + slope * end)
            joint[x, y] += (before - after) / slope
    return joint


class ScriptedCoupling(Scripted):
    """Follows Gumbel-coupled samples: a position's second id is conditional on its first."""

    def __init__(self, run, script):
        super().__init__(script)
        self.run = run

    def gumbel_max(self, probs, positions, *, where, sub=0):
        carried, distributions = self.run.drafter_state, probs.clone()
        for row, slot in where.nonzero().tolist():
            # A slot was sampled before if its draft was carried here; guesses are sampled freely.
            if slot < int(carried.count_B[row]):
                old, sampled = carried.probs[row, slot, 0], carried.codes[row, slot, 0]
                joint = coupled_joint(probs[row, slot], old)[sampled]
                distributions[row, slot] = joint / joint.sum()
        return self.decide(distributions, where)


def test_coupled_joint_has_both_marginals_and_the_coupling():
    rng = torch.Generator().manual_seed(0)
    p, q = torch.softmax(torch.randn(2, 4, generator=rng, dtype=torch.float64), dim=-1)
    joint = coupled_joint(p, q)
    torch.testing.assert_close(joint.sum(0), p)
    torch.testing.assert_close(joint.sum(1), q)
    gumbel = SeededNoise(range(100_000)).gumbel(torch.zeros(1, dtype=torch.long), (4,))[:, 0]
    x, y = (q.log() + gumbel).argmax(-1), (p.log() + gumbel).argmax(-1)
    counts = torch.bincount(x * 4 + y, minlength=16).view(4, 4) / len(x)
    torch.testing.assert_close(counts.double(), joint, atol=0.005, rtol=0)


@pytest.mark.parametrize("settings", [PLAIN, FULL], ids=["plain", "guided and filtered"])
def test_gumbel_coupling_is_exact(settings):
    generator = Table.random(length=3, vocab=3, classes=2)
    cond, (guidance, filters) = generator.conditioner(torch.tensor([0])), settings
    probs = enumerate_decoder(
        Jacobi(window=3, coupling="gumbel"),
        generator,
        cond,
        guidance=guidance,
        filters=filters,
        scripted=ScriptedCoupling,
    )
    assert variation(probs.joint, plain_joint(generator, cond, guidance, filters)) < 1e-12


def test_guesses_declared_as_they_are_drawn_need_fewer_passes():
    generator = Table.random(length=4, vocab=3)
    cond = generator.conditioner(torch.tensor([0]))

    def passes(**options):
        decoder = Jacobi(window=4, **options)
        return enumerate_decoder(
            decoder, generator, cond, guidance=Guidance(), filters=Filters()
        ).passes

    assert passes(coupling="none") < passes(coupling="none", guess="one_hot") < 4
    assert passes() < passes(guess="one_hot") < 4


@pytest.mark.parametrize("coupling", ["none", "gumbel", "maximal"])
def test_two_hundred_thousand_samples_pass_a_chi_square_test(coupling):
    generator = Table.random(length=3, vocab=3, classes=2)
    n, chunk, decoder = 200_000, 50_000, Jacobi(window=3, coupling=coupling)
    guidance, filters = Guidance(1.5), Filters(temperature=0.9, top_p=0.95)
    counts = torch.zeros(27)
    for seeds in torch.arange(n).split(chunk):
        codes = decoder(
            generator,
            generator.conditioner(torch.zeros(len(seeds), dtype=torch.long)),
            SamplingContext(
                guidance=guidance,
                filters=filters,
                noise=SeededNoise(seeds),
            ),
        ).codes
        counts += torch.bincount((codes * torch.tensor([9, 3, 1])).sum(-1), minlength=27)
    cond = generator.conditioner(torch.tensor([0]))
    expected = n * plain_joint(generator, cond, guidance, filters)
    there = expected > 0
    assert not counts[~there].any()
    statistic = ((counts - expected)[there].square() / expected[there]).sum()
    freedom = there.sum() - 1.0
    assert torch.special.gammaincc(freedom / 2, statistic / 2) > 0.001
