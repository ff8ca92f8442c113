"""Replays LANTERN's drafter: its forward pass and two dynamic trees, the second on its cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from argen.decoding.filters import Filters
from argen.decoding.speculative.distributions import GuidanceTable
from argen.decoding.speculative.tree_drafter import FeatureDrafterState, grow_likeliest
from argen.decoding.speculative.trees import Tree
from argen.generators.drafter.feature_drafter import FeatureDrafter
from argen.generators.heads.categorical import CategoricalHead
from argen.interop import lantern
from argen.interop.base import Imported
from argen.layers.tree import levels, reach
from replays.fixture import Fixture

SYSTEMS = ("lantern-drafter",)


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a `lantern-drafter` fixture."""
    config = fixture.config
    network = Imported(
        lantern.drafter_config(config), lantern.drafter_weights(fixture.weights), fixture.name
    ).build()
    assert isinstance(network, FeatureDrafter)
    vocab, dim = fixture["head_weight"].shape
    head = CategoricalHead(dim, vocab)
    head.proj.weight.data = fixture["head_weight"]
    # Ids are shifted by one: a row reads the code that its hidden vector predicted.
    ids = fixture["input_ids"][:1, 1:]
    hidden, count = fixture["hidden_states"], ids.shape[1] - network.prefix_rows
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        places = torch.arange(ids.shape[1])
        found["output_hidden"] = network.next_hidden(ids.expand(len(hidden), -1), hidden, places)
        scale, guided = config["cfg_scale"], len(hidden) == 2
        state = FeatureDrafterState(
            network=network,
            head=head,
            guidance=GuidanceTable(torch.full((network.spec.length,), scale)) if guided else None,
            filters=Filters(top_k=config.get("logits_top_k", 0)),
            cache=network.cache(len(hidden), 1 + config["top_k"] * config["depth"]),
            last=hidden[:, :1],
            length_B=torch.zeros(1, dtype=torch.long),
            longest=0,
        )
        state = state.read(ids, hidden, torch.tensor([count]), count)
        found |= _tree(config, state, ids[:, -1:], "")
        if "hidden_states_2" in fixture.io:
            more = fixture["input_ids_2"][:1, 1 + ids.shape[1] :]
            n = more.shape[1]
            state = state.read(more, fixture["hidden_states_2"], torch.tensor([n]), count + n)
            found |= _tree(config, state, more[:, -1:], "_2")
    return found


def _tree(
    config: dict[str, Any], state: FeatureDrafterState, root: Tensor, end: str
) -> dict[str, Any]:
    """Grow a tree and describe it as the reference does."""
    tree = grow_likeliest(
        state, width=config["top_k"], steps=config["depth"], nodes=config["total_tokens"] - 1
    )
    parents = tree.parents[0]
    N = len(parents)
    mask = torch.zeros(N + 1, N + 1)
    mask[:, 0] = 1
    mask[1:, 1:] = reach(parents).float()
    return {
        f"draft_tokens{end}": torch.cat((root, tree.codes), dim=1),
        f"retrieve_indices{end}": _paths(tree),
        f"tree_mask{end}": mask,
        f"tree_position_ids{end}": torch.cat((torch.zeros(1, dtype=torch.long), levels(parents))),
    }


def _paths(tree: Tree) -> Tensor:
    """Return the numbers from the root to every leaf, sorted, shorter paths filled with -1."""
    parents = tree.parents[0].tolist()
    leaves = set(range(1, len(parents) + 1)) - set(parents)
    paths = []
    for node in leaves:
        path = [node]
        while path[0]:
            path.insert(0, parents[path[0] - 1])
        paths.append(path)
    longest = max(len(path) for path in paths)
    filled = [path + [len(parents) + 1] * (longest - len(path)) for path in paths]
    table = torch.tensor(sorted(filled))
    return torch.where(table > len(parents), -1, table)
