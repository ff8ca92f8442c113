"""Trees of drafts: the walk keeps the model's distribution, and drafts have their own."""

import pytest
import torch

from argen.decoding.speculative.decisions import FRESH, use_of
from argen.decoding.speculative.neighbours import NeighbourRejection, nearest_codes
from argen.decoding.speculative.tree_drafter import TreeShape
from argen.decoding.speculative.trees import Tree, walk
from argen.errors import UserError
from argen.testing.enumeration import Scripted, follow

V, SHAPE = 3, TreeShape([[0], [1], [0, 0], [0, 1], [1, 0]])


def table(seed, *shape):
    decisions = torch.Generator().manual_seed(seed)
    return torch.softmax(1.5 * torch.randn(*shape, V, generator=decisions, dtype=torch.float64), -1)


# Distribution of three codes, and the drafter's distribution of the first two.
P1, P2, P3 = table(0), table(1, V), table(2, V, V)
Q1, Q2 = table(3), table(4, V)


def sample_tree(N, decisions):
    """Sample the children of each node one after another without replacement, as `grow_sampled`."""
    parents = torch.tensor(SHAPE.parents)
    codes = torch.zeros(N, len(parents), dtype=torch.long)
    tree_probs = torch.zeros(N, len(parents) + 1, V, dtype=torch.float64)
    rows, everywhere = torch.arange(N), torch.ones(N, 1, dtype=torch.bool)
    for number, children in enumerate(SHAPE.children):
        probs = Q1.expand(N, V) if number == 0 else Q2[codes[:, number - 1]]
        tree_probs[:, number] = probs
        for child in children:
            left = probs / probs.sum(-1, keepdim=True)
            new = decisions.choose(left[:, None], everywhere, use=0, where=everywhere)[:, 0]
            codes[:, child - 1] = new
            probs = probs.scatter(1, new[:, None], 0.0)
    width = max(len(children) for children in SHAPE.children)
    return Tree(codes, parents, tree_probs, width, SHAPE.depth), rows


def one_hot_tree(N):
    """Give every run the same tree of chosen codes."""
    codes = torch.tensor([0, 2, 1, 0, 1]).expand(N, -1)
    return Tree(codes, torch.tensor(SHAPE.parents), None, 2, 2)


def joint_after(kind, acceptance):
    """Return the distribution of three codes: what one pass makes final, then plain sampling."""

    def once(origin, script):
        decisions, N = Scripted(script), len(origin)
        tree = one_hot_tree(N) if kind == "dynamic" else sample_tree(N, decisions)[0]
        codes = tree.codes
        tree_probs = torch.zeros(N, codes.shape[1] + 1, V, dtype=torch.float64)
        tree_probs[:, 0] = P1
        for number, parent in enumerate(SHAPE.parents, 1):
            here = codes[:, number - 1]
            tree_probs[:, number] = P2[here] if parent == 0 else P3[codes[:, parent - 1], here]
        steps = torch.arange(3).expand(N, -1)
        limit = torch.full((N,), 2)
        kept = walk(tree, tree_probs, steps, decisions, 0, acceptance=acceptance, limit_B=limit)
        every = torch.ones(N, 1, dtype=torch.bool)
        extra = decisions.choose(kept.probs[:, None], every, use=use_of(FRESH), where=every)
        final = torch.zeros(N, 3, dtype=torch.long)
        final[:, :2] = codes.gather(1, (kept.path - 1).clamp(min=0))
        return (final.scatter(1, kept.count_B[:, None], extra), kept.count_B), decisions

    ((final, count), weight), *_ = follow(once, torch.ones(1, dtype=torch.float64))
    joint = torch.zeros(V, V, V, dtype=torch.float64)
    for (a, b, c), n, w in zip(final.tolist(), count.tolist(), weight.tolist()):
        if n == 2:
            joint[a, b, c] += w
        elif n == 1:
            joint[a, b] += w * P3[a, b]
        else:
            joint[a] += w * P2[a][:, None] * P3[a]
    return joint, float((count * weight).sum())


def variation(joint):
    plain = P1[:, None, None] * P2[:, :, None] * P3
    return float((joint - plain).abs().sum() / 2)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_plain_acceptance_keeps_the_distribution(kind):
    joint, kept = joint_after(kind, NeighbourRejection(k=0, delta=0.0, one_hot=kind == "dynamic"))
    assert variation(joint) < 1e-12
    assert kept > 0.5


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_relaxed_acceptance_keeps_more_and_moves_the_distribution(kind):
    nearest = nearest_codes(torch.tensor([[0.0], [1.0], [3.0]]), 2)
    exact = NeighbourRejection(k=0, delta=0.0, one_hot=kind == "dynamic")
    loose = NeighbourRejection(k=1, delta=0.3, one_hot=kind == "dynamic", nearest=nearest)
    joint, kept = joint_after(kind, loose)
    assert abs(float(joint.sum()) - 1) < 1e-12
    assert kept > joint_after(kind, exact)[1]
    assert 0.01 < variation(joint) < 0.5
    assert not loose.exact


def test_kept_distribution_moves_by_at_most_the_borrowed_mass():
    """Keeping a draft more often moves its distribution by at most the bound."""
    p = table(5, 40)
    nearest = nearest_codes(torch.randn(V, 2, generator=torch.Generator().manual_seed(0)), 2)
    for delta in (0.05, 0.3):
        rule = NeighbourRejection(k=1, delta=delta, one_hot=True, nearest=nearest)
        for x in range(V):
            draft = torch.full((40, 1, 1), x)
            probability = rule.probability(p[:, None, None], p[:, None, None], draft)[:, 0, 0]
            assert (probability - p[:, x] <= delta + 1e-12).all()
            assert (probability >= p[:, x]).all()


def test_neighbours_are_sorted_and_exclude_the_code_itself():
    vectors = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    near = nearest_codes(vectors, 29)
    assert (
        near.sort(-1).values
        == torch.stack([torch.tensor([i for i in range(30) if i != code]) for code in range(30)])
    ).all()
    distance = torch.cdist(vectors, vectors).gather(1, near)
    assert (distance.diff(dim=1) >= -1e-5).all()
    with pytest.raises(UserError, match="1 to 29"):
        nearest_codes(vectors, 30)


def test_shapes_name_their_nodes_by_level():
    assert SHAPE.parents == [0, 0, 1, 1, 2]
    assert SHAPE.children == [[1, 2], [3, 4], [5], [], [], []]
    assert SHAPE.above([3, 5], [1, 2, 3, 5]).tolist() == [
        [True, False, True, False],
        [False, True, False, True],
    ]
    ranked = TreeShape.ranked(57)
    assert len(ranked.parents) == 57
    assert ranked.depth == 5
    for paths in ([[0, 0]], [[1]], []):
        with pytest.raises(UserError):
            TreeShape(paths)
