"""The blocks of the MaskGIT generators of bytedance/1d-tokenizer (Apache-2.0), written anew.

Its BERT is the one of the transformers library (Apache-2.0) with torch's attention. Where argen
differs: queries, keys and values come from three layers in BERT; U-ViT casts them to float32 in a
joint copy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BertEmbeddings(nn.Module):
    """Ids, token types and positions, then norm and dropout."""

    def __init__(self, dim: int, *, ids: int, length: int, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(ids, dim)
        self.position_embeddings = nn.Embedding(length, dim)
        self.token_type_embeddings = nn.Embedding(2, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.position_ids: Tensor
        self.token_type_ids: Tensor
        self.register_buffer("position_ids", torch.arange(length)[None], persistent=False)
        self.register_buffer(
            "token_type_ids", torch.zeros(1, length, dtype=torch.long), persistent=False
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids (B, S)."""
        types = self.token_type_ids[:, : ids.shape[1]].expand(ids.shape)
        x = self.word_embeddings(ids) + self.token_type_embeddings(types)
        x = x + self.position_embeddings(self.position_ids[:, : ids.shape[1]])
        return self.dropout(self.LayerNorm(x))


class BertLayer(nn.Module):
    """Attention, then a feed-forward layer, each with a norm after its sum."""

    def __init__(
        self, dim: int, heads: int, hidden: int, *, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.self = BertAttention(dim, heads, dropout=attention_dropout)
        self.attention.output = BertOutput(dim, dim, dropout=dropout)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(dim, hidden)
        self.output = BertOutput(hidden, dim, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, D)."""
        x = self.attention.output(self.attention.self(x), x)
        return self.output(F.gelu(self.intermediate.dense(x)), x)


class BertAttention(nn.Module):
    """Self-attention without its output layer."""

    def __init__(self, dim: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, D)."""
        B, S, D = x.shape
        q, k, v = (
            layer(x).view(B, S, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return y.transpose(1, 2).reshape(B, S, D)


class BertOutput(nn.Module):
    """The last layer of a branch, its sum with the branch's input, and the norm."""

    def __init__(self, width: int, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """Map a branch (B, S, width) and its input (B, S, D)."""
        return self.LayerNorm(self.dropout(self.dense(h)) + x)


class UViTBlock(nn.Module):
    """Attention and a feed-forward layer, each after a norm, behind an optional long skip."""

    def __init__(self, dim: int, heads: int, hidden: int, *, skip: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = UViTAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = UViTMLP(dim, hidden)
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None

    def forward(self, x: Tensor, earlier: Tensor | None = None) -> Tensor:
        """Map (B, S, D), joined with an earlier state of that shape where there is a skip."""
        if self.skip_linear is not None:
            assert earlier is not None
            x = self.skip_linear(torch.cat((x, earlier), dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViTAttention(nn.Module):
    """Self-attention in float32."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, D)."""
        B, S, D = x.shape
        qkv = self.qkv(x).view(B, S, 3, self.heads, -1).permute(2, 0, 3, 1, 4).float()
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(y.transpose(1, 2).reshape(B, S, D))


class UViTMLP(nn.Module):
    """fc2(gelu(fc1 x))."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D)."""
        return self.fc2(self.act(self.fc1(x)))
