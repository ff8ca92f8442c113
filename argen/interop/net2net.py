"""taming-transformers' second stage (CompVis, MIT, arXiv 2012.09841): `Net2NetTransformer`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.generators.net2net.orders import ORDERS, grid_order
from argen.interop.base import Imported, Rule, StateDict, merge, rename, unwrap
from argen.spec import CodeSpec, Segment

SOURCE = "net2net"

WRAPPERS = ("state_dict",)
ORDER_KEY = "permuter.forward_shuffle_idx"

# Heads are not visible in the weights; (layers, width) tells the published sizes apart.
HEADS = {(48, 1536): 24, (24, 1024): 16, (24, 1664): 16}

# Class names of the permuters.
PERMUTERS = {
    "Identity": "raster",
    "Subsample": "subsample",
    "ZCurve": "zcurve",
    "SpiralOut": "spiral_out",
    "SpiralIn": "spiral_in",
    "Random": "random",
    "AlternateParsing": "alternate",
}

RULES: list[Rule] = [
    (r"transformer\.tok_emb\.weight", "embed.weight"),
    (r"transformer\.pos_emb", "positions"),
    (r"transformer\.head\.weight", "head.proj.weight"),
    (r"transformer\.ln_f\.(weight|bias)", r"norm.\1"),
    (r"transformer\.blocks\.(\d+)\.ln1\.(weight|bias)", r"blocks.\1.attention_norm.\2"),
    (r"transformer\.blocks\.(\d+)\.ln2\.(weight|bias)", r"blocks.\1.ffn_norm.\2"),
    (
        r"transformer\.blocks\.(\d+)\.attn\.(query|key|value)\.(weight|bias)",
        r"blocks.\1.attention.\2.\3",
    ),
    (r"transformer\.blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"blocks.\1.attention.out.\2"),
    (r"transformer\.blocks\.(\d+)\.mlp\.0\.(weight|bias)", r"blocks.\1.ffn.fc1.\2"),
    (r"transformer\.blocks\.(\d+)\.mlp\.2\.(weight|bias)", r"blocks.\1.ffn.fc2.\2"),
    # The causal mask, the order (read elsewhere), and the tokenizers that the file carries along.
    (r"transformer\.blocks\.\d+\.attn\.mask", None),
    (r"(permuter|first_stage_model|cond_stage_model)\..+", None),
]


@dataclass(frozen=True)
class Condition:
    """What stands before the codes; every id is embedded as the code of the same number.

    Attributes:
        kind: `class` (a label), `start` (unconditional, the row of a start token) or `tokens`
            (ids of a depth map, a segmentation, coordinates or boxes).
        ids: number of labels or ids; the start token's id for `start`.
        length: number of condition tokens T.
    """

    kind: str
    ids: int
    length: int = 1

    def config(self, dim: int) -> dict[str, Any]:
        """Return the conditioner's configuration."""
        if self.kind == "class":
            return {
                "_target_": "argen.generators.conditioning.ClassConditioner",
                "num_classes": self.ids,
                "dim": dim,
                "drop_rate": 0.0,
            }
        if self.kind == "start":
            return {
                "_target_": "argen.generators.net2net.token_conditioning.Unconditional",
                "dim": dim,
            }
        if self.kind != "tokens":
            raise UserError(f"Unknown condition {self.kind!r}; use class, start or tokens.")
        return {
            "_target_": "argen.generators.net2net.token_conditioning.TokenConditioner",
            "vocab_size": self.ids,
            "dim": dim,
            "length": self.length,
        }

    def rows(self, table_VD: Tensor) -> StateDict:
        """Return the conditioner's weights, copied from the code table."""
        if self.kind == "start":
            return {"conditioner.token": table_VD[self.ids]}
        return {"conditioner.table.weight": table_VD[: self.ids]}


def condition_of(config: Mapping[str, Any], *, length: int = 1) -> Condition:
    """Return the condition that a `Net2NetTransformer` configuration describes.

    Args:
        config: its constructor arguments.
        length: number of condition tokens, for conditions that are ids.
    """
    stage = config.get("cond_stage_config", "__is_unconditional__")
    vocab = config["transformer_config"]["params"]["vocab_size"]
    if isinstance(stage, str) or config.get("unconditional", False):
        return Condition("start", config.get("sos_token", 0))
    parameters = stage.get("params") or {}
    name = stage["target"].rpartition(".")[2]
    if name == "SOSProvider":
        return Condition("start", parameters.get("sos_token", 0))
    if name == "Labelator":
        return Condition("class", min(parameters["n_classes"], vocab))
    return Condition("tokens", vocab, length)


def generator_weights(
    weights: Mapping[str, Tensor], condition: Condition, *, source: str = "Net2Net"
) -> StateDict:
    """Translate the transformer's part of a state dict."""
    found = merge(rename(weights, RULES, source=source), ("query", "key", "value"), "qkv")
    found["positions"] = found["positions"][0]
    return found | condition.rows(found["embed.weight"])


def generator_config(
    config: Mapping[str, Any],
    condition: Condition,
    *,
    grid: tuple[int, int],
    weights: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Translate the constructor arguments of a `Net2NetTransformer`.

    Args:
        config: with `transformer_config`, and `first_stage_config` for the size of the codebook.
        condition: what stands before the codes.
        grid: (h, w) of the codes.
        weights: the state dict, whose stored order is believed rather than the permuter's name.
    """
    network = config["transformer_config"]["params"]
    stage = (config.get("first_stage_config") or {}).get("params") or {}
    # A list of used codes (`remap`) takes the place of the codebook's numbers.
    codes = min(stage.get("n_embed", network["vocab_size"]), network["vocab_size"])
    if weights is not None and "first_stage_model.quantize.used" in weights:
        codes = len(weights["first_stage_model.quantize.used"])
    spec = CodeSpec("discrete", (Segment(grid, (codes,), dim=stage.get("embed_dim", 0)),))
    return {
        "_target_": "argen.generators.net2net.Net2Net",
        "spec": spec.to_dict(),
        "conditioner": condition.config(network["n_embd"]),
        "dim": network["n_embd"],
        "layers": network["n_layer"],
        "heads": network["n_head"],
        "order": _order(config, grid, weights),
        "keep_rate": config.get("pkeep", 1.0),
        "vocab_size": network["vocab_size"],
        "positions": network["block_size"],
        "unmasked": network.get("n_unmasked", 0),
        "embed_dropout": network.get("embd_pdrop", 0.0),
        "residual_dropout": network.get("resid_pdrop", 0.0),
        "attention_dropout": network.get("attn_pdrop", 0.0),
    }


def _order(
    config: Mapping[str, Any], grid: tuple[int, int], weights: Mapping[str, Tensor] | None
) -> str | list[int]:
    stored = None if weights is None else weights.get(ORDER_KEY)
    if stored is not None:
        return _named(stored.tolist(), grid)
    permuter = config.get("permuter_config")
    if not permuter:
        return "raster"
    name = permuter["target"].rpartition(".")[2]
    if name not in PERMUTERS:
        raise UserError(f"Unknown permuter {name}; known are {', '.join(PERMUTERS)}.")
    parameters = permuter.get("params") or {}
    size = (parameters.get("H", grid[0]), parameters.get("W", grid[1]))
    if size != tuple(grid):
        raise UserError(f"The permuter is made for a {size} grid of codes, not {tuple(grid)}.")
    return PERMUTERS[name]


def _named(order: Sequence[int], grid: tuple[int, int]) -> str | list[int]:
    """Return the name of an order, or the list itself."""
    for name in ORDERS:
        try:
            if grid_order(name, grid) == list(order):
                return name
        except UserError:
            continue
    return [int(p) for p in order]


def import_generator(
    checkpoint: Any,
    *,
    source: str,
    image_size: int = 256,
    factor: int = 16,
    condition: str = "class",
    ids: int | None = None,
    heads: int | None = None,
) -> Imported:
    """Import a released `.ckpt`.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images; with `factor` it gives the code grid.
        factor: the tokenizer's down-sampling.
        condition: `class`, `start` (unconditional) or `tokens` (depth, segmentation, coordinates).
        ids: number of classes (1000), the start token (0), or the number of condition ids (all).
        heads: attention heads, where the size is not one of the published ones.
    """
    weights = unwrap(checkpoint, keys=WRAPPERS, source=source)
    if "transformer.tok_emb.weight" not in weights:
        raise CheckpointError(f"{source} is not a Net2Net file: no transformer.tok_emb.weight.")
    vocab, dim = weights["transformer.tok_emb.weight"].shape
    layers = len({m[1] for k in weights if (m := re.match(r"transformer\.blocks\.(\d+)\.", k))})
    heads = heads or HEADS.get((layers, dim))
    if heads is None:
        raise UserError(
            f"{source} has {layers} layers of width {dim}, not a published size; pass heads=N."
        )
    side, block = image_size // factor, weights["transformer.pos_emb"].shape[1]
    found = {
        "class": lambda: Condition("class", ids or min(1000, vocab)),
        "start": lambda: Condition("start", ids or 0),
        "tokens": lambda: Condition("tokens", ids or vocab, block - side * side),
    }
    if condition not in found:
        raise UserError(f"Unknown condition {condition!r}; use {', '.join(found)}.")
    stands = found[condition]()
    codebook = weights.get("first_stage_model.quantize.embedding.weight")
    network = {
        "vocab_size": vocab,
        "block_size": block,
        "n_layer": layers,
        "n_head": heads,
        "n_embd": dim,
        "n_unmasked": _unmasked(weights),
    }
    stage = {} if codebook is None else {"n_embed": len(codebook), "embed_dim": codebook.shape[1]}
    config = generator_config(
        {"transformer_config": {"params": network}, "first_stage_config": {"params": stage}},
        stands,
        grid=(side, side),
        weights=weights,
    )
    return Imported(config, generator_weights(weights, stands, source=source), source)


def _unmasked(weights: Mapping[str, Tensor]) -> int:
    """Read off the stored mask how many first tokens see each other."""
    mask = weights.get("transformer.blocks.0.attn.mask")
    if mask is None:
        return 0
    seen = int(mask[0, 0, 0].sum())  # A causal first row sees itself alone.
    return seen if seen > 1 else 0
