"""Trees of drafts are scored as by teacher forcing along each branch, and leave one branch."""

import pytest
import torch

from argen.build import build
from argen.generators.conditioning import TextConditioner, TextFeatures
from argen.layers.tree import levels, reach
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

SPEC = CodeSpec("discrete", (Segment((3, 4), vocab_sizes=(20,), dim=4),))
#            1        2
#          3   4      5
#          6
PARENTS = torch.tensor([0, 0, 1, 1, 2, 3])
BRANCHES = [[], [1], [2], [1, 3], [1, 4], [2, 5], [1, 3, 6]]


def make(name, **changes):
    torch.manual_seed(0)
    config = for_codes(preset("generator", name), SPEC, num_classes=4)
    generator = build({**config, **changes}).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return generator


def condition(generator, rows):
    if isinstance(generator.conditioner, TextConditioner):
        mask = torch.arange(5) >= torch.arange(rows)[:, None]  # padded on the left
        return generator.conditioner(TextFeatures(torch.randn(rows, 5, 7), mask))
    return generator.conditioner(torch.arange(rows))


TEXT = {
    "_target_": "argen.generators.conditioning.TextConditioner",
    "feature_dim": 7,
    "dim": 64,
    "length": 5,
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [("tiny_gpt", {}), ("tiny_gpt", {"conditioner": TEXT}), ("tiny_rar", {})],
    ids=["classes", "text", "rar"],
)
@torch.no_grad()
def test_every_branch_is_scored_as_by_teacher_forcing(name, changes):
    generator, R = make(name, **changes), 2
    cond = condition(generator, R)
    codes = torch.randint(20, (R, 12), generator=torch.Generator().manual_seed(1))
    nodes = torch.randint(20, (R, 6), generator=torch.Generator().manual_seed(2))
    state = generator.start(cond, longest_draft=7)

    def forced(row, length, branch):
        whole = codes[row].clone()
        for step, number in enumerate(branch):
            whole[length + step] = nodes[row, number - 1]
        return generator.score(whole[None], cond.rows(slice(row, row + 1)))[0][length + len(branch)]

    def compare(lengths, parents):
        logits = generator.predict(state, nodes, parents=parents)
        for row, length in enumerate(lengths):
            for number, branch in enumerate(BRANCHES):
                expected = forced(row, length, branch)
                torch.testing.assert_close(logits[row, number], expected, atol=2e-5, rtol=1e-4)

    compare([0, 0], PARENTS)  # together with the prefix
    # Row 0 keeps 1, 3 and one code of its own, row 1 keeps 2, 5 and one more.
    path = torch.tensor([[1, 3], [2, 5]])
    codes[:, :2] = nodes.gather(1, path - 1)
    generator.commit(state, codes[:, :3], torch.tensor([3, 3]), path=path)
    compare([3, 3], PARENTS.expand(R, -1))
    # Row 0 keeps 1, 3, 6 and one more; row 1 only a code of its own.
    path = torch.tensor([[1, 3, 6], [0, 0, 0]])
    codes[0, 3:6] = nodes[0, [0, 2, 5]]
    new = torch.stack((codes[0, 3:7], codes[1, 3:7]))
    generator.commit(state, new, torch.tensor([4, 1]), path=path)
    compare([7, 4], PARENTS.expand(R, -1))


def test_reach_and_levels():
    assert levels(PARENTS).tolist() == [1, 1, 2, 2, 2, 3]
    above = [{i + 1 for i in range(6) if row[i]} for row in reach(PARENTS)]
    assert above == [{1}, {2}, {1, 3}, {1, 4}, {2, 5}, {1, 3, 6}]
    chain = torch.arange(9)
    assert levels(chain).tolist() == list(range(1, 10))
