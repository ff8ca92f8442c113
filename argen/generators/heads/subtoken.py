"""Heads for codes of several ids: one after another by a small transformer, or all at once.

Shapes: R rows, B samples, n positions, G sub-tokens, D model width, V vocabulary of a sub-token.
`outputs` are the hidden vectors themselves, since later sub-tokens depend on sampled ones; guidance
acts on the logits of each sub-token.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError
from argen.generators.heads.base import Filter, Head, filter_of
from argen.generators.heads.guidance import GuidanceStep, guide
from argen.generators.heads.sampling import sample_categorical
from argen.generators.heads.split import VocabularySplit
from argen.generators.next_token import compute_dtype
from argen.layers.cache import KVCache, Window
from argen.layers.noise import Noise
from argen.layers.norms import RMSNorm
from argen.layers.transformer import Block


class SubTokenEmbedding(nn.Module):
    """Embeds the G ids of a code by one table each.

    Args:
        split: how codes become ids.
        dim: model width D.
        combine: `sum` of the rows, or `concat` and a linear layer back to D (ELM).
    """

    def __init__(self, split: VocabularySplit, dim: int, *, combine: str = "sum") -> None:
        super().__init__()
        if combine not in ("sum", "concat"):
            raise UserError(f"Unknown combine {combine!r}; use sum or concat.")
        self.split = split
        self.tables = nn.ModuleList(nn.Embedding(size, dim) for size in split.sizes)
        self.proj = (
            nn.Linear(len(split.sizes) * dim, dim, bias=False) if combine == "concat" else None
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Embed codes (R, n, ...) as (R, n, D)."""
        ids = self.split.split(codes)  # R n G
        rows = [table(ids[..., g]) for g, table in enumerate(self.tables)]
        return sum(rows[1:], rows[0]) if self.proj is None else self.proj(torch.cat(rows, dim=-1))


class SubTokenHead(Head):
    """One softmax a sub-token.

    Args:
        embed: the embedding of the codes, which the network's input shares.
        dim: model width D.
    """

    def __init__(self, embed: SubTokenEmbedding, dim: int) -> None:
        super().__init__()
        self.embed, self.split = embed, embed.split
        self.projs = nn.ModuleList(nn.Linear(dim, s, bias=False) for s in self.split.sizes)

    def forward(self, hidden_BnD: Tensor) -> Tensor:
        """Pass the hidden vectors on."""
        return hidden_BnD

    def output_layers(self) -> list[nn.Linear]:
        """Return the projection of each sub-token."""
        return list(self.projs)  # type: ignore[arg-type]

    @abstractmethod
    def logits(self, outputs: Tensor, codes: Tensor) -> list[Tensor]:
        """Return float32 logits (R, n, V) of each sub-token given the ones before it in `codes`."""

    @abstractmethod
    def sample_ids(
        self,
        outputs: Tensor,
        *,
        guidance: GuidanceStep | None,
        filters: Filter,
        noise: Noise,
        positions: Tensor,
    ) -> Tensor:
        """Sample ids (B, n, G); the arguments are those of `sample`."""

    def nll(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the cross entropy in nats of each sub-token of codes, (B, n, G)."""
        ids = self.split.split(target)
        parts = [
            F.cross_entropy(logits.flatten(0, 1), ids[..., g].flatten(), reduction="none")
            for g, logits in enumerate(self.logits(outputs, target))
        ]
        return torch.stack(parts, dim=-1).view(ids.shape)

    def loss(self, outputs: Tensor, target: Tensor, **options: Any) -> Tensor:
        """Return the cross entropy in nats of codes, summed over sub-tokens, (B, n)."""
        return self.nll(outputs, target).sum(-1)

    @property
    def id_sizes(self) -> tuple[int, ...]:
        """Vocabulary size of each sub-token."""
        return self.split.sizes

    def to_ids(self, codes: Tensor) -> Tensor:
        """Return the sub-tokens (..., G) of codes."""
        return self.split.split(codes)

    def to_codes(self, ids: Tensor) -> Tensor:
        """Return the codes of sub-tokens (..., G)."""
        return self.split.join(ids)

    def conditional(self, outputs: Tensor, codes: Tensor) -> Tensor:
        """Return logits (R, n, G, V) of each sub-token given the ones before it in `codes`.

        Smaller vocabularies are filled up to the largest with logits of probability zero.
        """
        parts, widest = self.logits(outputs, codes), max(self.split.sizes)
        # Finite, because guidance subtracts rows.
        padded = [F.pad(p, (0, widest - p.shape[-1]), value=-1e30) for p in parts]
        return torch.stack(padded, dim=2)

    def guided(self, outputs: Tensor, guidance: GuidanceStep | None) -> Tensor:
        """Return the conditional rows; guidance acts later, on each sub-token."""
        return outputs if guidance is None else outputs.chunk(2)[0]

    def sample(
        self,
        outputs: Tensor,
        *,
        guidance: GuidanceStep | None,
        filters: Filter,
        noise: Noise,
        positions: Tensor,
    ) -> Tensor:
        """Sample codes (B, n, ...); weights and filters may be one for each sub-token."""
        return self.split.join(
            self.sample_ids(
                outputs, guidance=guidance, filters=filters, noise=noise, positions=positions
            )
        )

    def _sample_one(
        self,
        g: int,
        logits: Tensor,
        *,
        guidance: GuidanceStep | None,
        filters: Filter,
        noise: Noise,
        positions: Tensor,
    ) -> Tensor:
        """Sample sub-token `g`, (B, n), from logits (R, n, V)."""
        own = self._guidance_of(guidance, g)
        guided = filter_of(filters, g)(guide(logits, own))
        uniform = noise.uniform(positions, use=g).to(guided.device)
        return sample_categorical(guided, uniform.expand(guided.shape[:-1]))

    def _guidance_of(self, guidance: GuidanceStep | None, g: int) -> GuidanceStep | None:
        """Return the guidance of a sub-token."""
        if guidance is None or isinstance(guidance.weight, int | float | Tensor):
            return guidance
        weights = guidance.weight
        if len(weights) != len(self.projs):
            raise UserError(
                f"{len(weights)} guidance weights were given for {len(self.projs)} sub-tokens; "
                "give one for each, or a single one."
            )
        return replace(guidance, weight=float(weights[g]))


class ParallelHead(SubTokenHead):
    """Sub-tokens that are independent given the hidden vector (ELM, arXiv 2410.16257)."""

    def logits(self, outputs: Tensor, codes: Tensor) -> list[Tensor]:
        """Return float32 logits (R, n, V) of each sub-token; `codes` do not matter."""
        return [proj(outputs).float() for proj in self.projs]

    def sample_ids(self, outputs: Tensor, **options: Any) -> Tensor:
        """Sample ids (B, n, G)."""
        ids = [
            self._sample_one(g, proj(outputs).float(), **options)
            for g, proj in enumerate(self.projs)
        ]
        return torch.stack(ids, dim=-1)


class FactorisedHead(SubTokenHead):
    """Sub-token after sub-token, by causal blocks over [h, e_0, ..., e_(G-2)].

    h is the hidden vector of the position, e_g the embedding of its sub-token g
    (Open-MAGVIT2, arXiv 2409.04410).

    Args:
        embed: the embedding of the codes.
        dim: model width D.
        blocks: the blocks, all with the same heads.
        rope: rotary rows of the G slots, (G, head_dim / 2, 2).
        norm_eps: epsilon of the norm before the projections.
    """

    def __init__(
        self,
        embed: SubTokenEmbedding,
        dim: int,
        *,
        blocks: list[Block],
        rope: Tensor,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(embed, dim)
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(dim, norm_eps)
        self.rope_table: Tensor
        self.register_buffer("rope_table", rope, persistent=False)

    def logits(self, outputs: Tensor, codes: Tensor) -> list[Tensor]:
        """Return float32 logits (R, n, V) of each sub-token given the ones before it."""
        ids = self.split.split(codes)
        rows = [table(ids[..., g]) for g, table in enumerate(self.embed.tables)]
        x = torch.stack((outputs, *rows[:-1]), dim=2)  # R n G D
        y = x.flatten(0, 1)  # Rn G D
        for block in self.blocks:
            y = block(y, rope=self.rope_table, causal=True)
        y = self.norm(y).view(x.shape)
        return [proj(y[:, :, g]).float() for g, proj in enumerate(self.projs)]

    def sample_ids(self, outputs: Tensor, **options: Any) -> Tensor:
        """Sample ids (B, n, G), with a fresh cache for every position."""
        R, n, _ = outputs.shape
        x_R1D, ids = outputs.reshape(R * n, 1, -1), []
        cache = self._cache(R * n)
        for g, proj in enumerate(self.projs):
            window = Window(start=g, n=1, reach=g + 1)
            for layer, block in enumerate(self.blocks):
                rope = self.rope_table[g : g + 1]
                x_R1D = block(x_R1D, rope=rope, cache=cache, layer=layer, window=window)
            logits = proj(self.norm(x_R1D)).float().view(R, n, -1)
            ids.append(self._sample_one(g, logits, **options))
            fed = ids[-1].repeat(R // ids[-1].shape[0], 1)
            x_R1D = self.embed.tables[g](fed).view(R * n, 1, -1)
        return torch.stack(ids, dim=-1)

    def _cache(self, rows: int) -> KVCache:
        block = self.blocks[0]
        assert isinstance(block, Block)
        weight = block.attention.qkv.weight
        return KVCache(
            layers=len(self.blocks),
            rows=rows,
            heads=block.attention.kv_heads,
            slots=len(self.projs),
            head_dim=block.attention.head_dim,
            dtype=compute_dtype(weight),
            device=weight.device,
        )
