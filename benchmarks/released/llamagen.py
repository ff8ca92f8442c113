"""LlamaGen's training step (FoundationVision/LlamaGen, MIT), written anew from its description.

Where argen differs: norms there are several operations in float32, rotary positions turn queries
and keys one after the other through a stacked copy, and keys and values are copied as if heads were
grouped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.layers.rope import rope_table_2d
from released.step import ReleasedNetwork


class Network(ReleasedNetwork):
    """Class-conditional Llama blocks over the codes of a square grid."""

    fused = True  # the script asks for it wherever torch knows the word

    def __init__(
        self,
        *,
        dim: int,
        layers: int,
        heads: int,
        hidden: int,
        vocab: int,
        side: int,
        classes: int,
        dropout: float,
        label_dropout: float,
    ) -> None:
        super().__init__()
        self.classes, self.label_dropout = classes, label_dropout
        self.cls_embedding = nn.Module()
        self.cls_embedding.embedding_table = nn.Embedding(classes + 1, dim)
        self.tok_embeddings = nn.Embedding(vocab, dim)
        self.tok_dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(dim, heads, hidden, dropout) for _ in range(layers))
        self.norm = Norm(dim)
        self.output = nn.Linear(dim, vocab, bias=False)
        table = rope_table_2d((side, side), dim // heads)
        self.freqs_cis: Tensor
        self.register_buffer(
            "freqs_cis", torch.cat((torch.zeros_like(table[:1]), table)), persistent=False
        )
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    @classmethod
    def like(cls, generator: Any) -> Network:
        """Return one of a GPT's sizes."""
        return cls(**sizes(generator))

    def forward(self, codes: Tensor, label: Tensor) -> Tensor:
        """Return the mean cross entropy of codes (B, L)."""
        h = self.embed(codes[:, :-1], label)
        table = self.freqs_cis[: h.shape[1]]
        for layer in self.layers:
            h = layer(h, table)
        logits = self.output(self.norm(h)).float()
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), codes.reshape(-1))

    def embed(self, codes: Tensor, label: Tensor) -> Tensor:
        """Return the condition and codes (B, n) as the first layer reads them, (B, 1 + n, D)."""
        if self.training and self.label_dropout > 0:
            dropped = torch.rand(len(label), device=label.device) < self.label_dropout
            label = torch.where(dropped, self.classes, label)
        cond = self.cls_embedding.embedding_table(label)[:, None]
        return self.tok_dropout(torch.cat((cond, self.tok_embeddings(codes)), dim=1))


def sizes(generator: Any) -> dict[str, Any]:
    """Return the sizes of argen's GPT, or another one of its blocks, by their names here."""
    block, spec = generator.blocks[0], generator.spec
    return {
        "dim": generator.embed.embedding_dim,
        "layers": len(generator.blocks),
        "heads": block.attention.heads,
        "hidden": block.ffn.gate.out_features,
        "vocab": spec.segments[0].vocab_sizes[0],
        "side": spec.segments[0].shape[0],
        "classes": generator.conditioner.num_classes,
        "dropout": generator.dropout.p,
        "label_dropout": generator.conditioner.drop_rate,
    }


class Norm(nn.Module):
    """RMSNorm in float32, cast back before the weight."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., D)."""
        wide = x.float()
        unit = wide * torch.rsqrt(torch.mean(wide * wide, dim=-1, keepdim=True) + 1e-5)
        return unit.type_as(x) * self.weight


class Layer(nn.Module):
    """Attention and a gated feed-forward layer, each before its own norm and dropout."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, dropout)
        self.feed_forward = FeedForward(dim, hidden, dropout)
        self.attention_norm = Norm(dim)
        self.ffn_norm = Norm(dim)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (B, L, D)."""
        h = x + self.attention(self.attention_norm(x), table, mask)
        return h + self.feed_forward(self.ffn_norm(h))


class Attention(nn.Module):
    """Self-attention, causal where there is no mask."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.resid_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (B, L, D); the mask (B, 1, L, L) is true where a query may look."""
        B, L, D = x.shape
        parts = self.wqkv(x).split(D, dim=-1)
        q, k, v = (part.view(B, L, self.heads, -1) for part in parts)
        q, k = turn(q, table), turn(k, table)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        # The published code allows for grouped heads; no size has them, so this only copies.
        k, v = (part.repeat_interleave(1, dim=1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        y = y.transpose(1, 2).contiguous().view(B, L, D)
        return self.resid_dropout(self.wo(y))


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.ffn_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D)."""
        return self.ffn_dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


def turn(x: Tensor, table: Tensor) -> Tensor:
    """Rotate (B, L, heads, width) by rows (L, width / 2, 2), in float32."""
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    rows = table.view(1, x.shape[1], 1, -1, 2)
    turned = torch.stack(
        (
            pairs[..., 0] * rows[..., 0] - pairs[..., 1] * rows[..., 1],
            pairs[..., 1] * rows[..., 0] + pairs[..., 0] * rows[..., 1],
        ),
        dim=-1,
    )
    return turned.flatten(3).type_as(x)
