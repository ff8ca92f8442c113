"""RAR's training step (bytedance/1d-tokenizer, Apache-2.0), written anew from its description.

Where argen differs: the last code is fed and scored too, orders are drawn sample by sample,
position tables are copied for every sample before their rows are picked, attention reads a dense
additive causal mask, and AdamW is not fused. The accuracy that is only logged is left out.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from released.step import ReleasedNetwork
from released.vit import Mlp

PREFIX = 2  # the class token and the condition
NOT_DECAYED = ("ln", "bias", "norm", "embed")  # what a weight's name holds; case counts


class Network(ReleasedNetwork):
    """Blocks under an adaptive norm over codes in any order."""

    lr = 4e-4
    betas = (0.9, 0.96)
    weight_decay = 0.03

    def __init__(
        self,
        *,
        dim: int,
        layers: int,
        heads: int,
        hidden: int,
        vocab: int,
        length: int,
        classes: int,
        positions: int,
        steps: int,
        dropout: float,
        attention_dropout: float,
        label_dropout: float,
    ) -> None:
        super().__init__()
        self.vocab, self.length, self.classes = vocab, length, classes
        self.label_dropout, self.random_ratio = label_dropout, 1.0
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(
            Layer(dim, heads, hidden, dropout, attention_dropout) for _ in range(layers)
        )
        # Codes, a mask that nothing uses, classes and the null class.
        self.embeddings = nn.Embedding(vocab + 1 + classes + 1, dim)
        self.pos_embed = nn.Parameter(torch.empty(1, positions, dim))
        self.target_aware_pos_embed = nn.Parameter(torch.empty(1, positions, dim))
        self.timesteps_embeddings = nn.Parameter(torch.empty(1, steps, dim))
        self.adaln_before_head = LastNorm(dim)
        self.lm_head = nn.Linear(dim, vocab)
        self.attn_mask: Tensor
        mask = torch.full((positions, positions), float("-inf")).triu_(1)
        self.register_buffer("attn_mask", mask, persistent=False)
        for table in (self.pos_embed, self.target_aware_pos_embed, self.timesteps_embeddings):
            nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @classmethod
    def like(cls, generator: Any) -> Network:
        """Return one of a RAR's sizes."""
        block = generator.blocks[0]
        return cls(
            dim=generator.embed.embedding_dim,
            layers=len(generator.blocks),
            heads=block.attention.heads,
            hidden=block.ffn.fc1.out_features,
            vocab=generator.embed.num_embeddings,
            length=generator.spec.length,
            classes=generator.conditioner.num_classes,
            positions=len(generator.positions),
            steps=len(generator.steps),
            dropout=block.attention.dropout.p,
            attention_dropout=block.attention.attention_dropout,
            label_dropout=generator.conditioner.drop_rate,
        )

    def forward(self, codes: Tensor, label: Tensor) -> Tensor:
        """Return the mean cross entropy of codes (B, L) in orders drawn afresh."""
        dropped = torch.rand_like(label, dtype=torch.float) < self.label_dropout
        return self.loss(codes, label, orders=self.draw_orders(codes), dropped=dropped)

    def draw_orders(self, codes: Tensor) -> Tensor:
        """Return an order a sample, (B, L): random with a chance of `random_ratio`."""
        orders = []
        for _ in range(len(codes)):
            if random.random() < self.random_ratio:
                orders.append(torch.randperm(self.length, device=codes.device))
            else:
                orders.append(torch.arange(self.length, device=codes.device))
        return torch.stack(orders)

    def loss(self, codes: Tensor, label: Tensor, *, orders: Tensor, dropped: Tensor) -> Tensor:
        """Return the mean cross entropy.

        Args:
            codes: (B, L), in raster order.
            label: (B,).
            orders: position of each step, (B, L).
            dropped: true where the null class takes a label's place, (B,).
        """
        condition = label + self.vocab + 1
        condition[dropped] = self.vocab + 1 + self.classes
        # The published wrapper casts what the network returns; the loss lies outside autocast.
        logits = self.logits(codes, condition, orders).float()
        labels = pick(codes, orders)
        return F.cross_entropy(logits[:, :-1].permute(0, 2, 1).contiguous(), labels)

    def logits(self, codes: Tensor, condition: Tensor, orders: Tensor) -> Tensor:
        """Return logits (B, L + 1, V), the last of which predict nothing.

        Args:
            codes: (B, L), in raster order.
            condition: rows of the table, (B,).
            orders: (B, L).
        """
        embedded = self.embeddings(torch.cat((condition[:, None], codes), dim=1))
        cond = embedded[:, 0]
        own = self.pos_embed.repeat(len(codes), 1, 1)
        following = self.target_aware_pos_embed.repeat(len(codes), 1, 1)
        places = slice(PREFIX, PREFIX + self.length)
        own = torch.cat((own[:, :PREFIX], pick(own[:, places], orders)), dim=1)
        following = pick(following[:, places], orders)
        x = torch.cat((embedded[:, :1], pick(embedded[:, 1:], orders)), dim=1)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        x = x + own
        nothing = torch.zeros_like(x[:, :1])
        x = x + torch.cat((nothing, following, torch.zeros_like(x[:, -1:])), dim=1)
        mask = self.attn_mask[: x.shape[1], : x.shape[1]]
        steps = cond[:, None] + self.timesteps_embeddings[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x, steps, mask)
        x, steps = x[:, PREFIX - 1 :], steps[:, PREFIX - 1 :]
        return self.lm_head(self.adaln_before_head(x, steps))

    def spared(self, name: str, parameter: nn.Parameter) -> bool:
        """Embeddings and norms do not decay."""
        return parameter.ndim < 2 or any(part in name for part in NOT_DECAYED)


class Layer(nn.Module):
    """Attention and a feed-forward layer, shifted, scaled and gated by the condition."""

    def __init__(
        self, dim: int, heads: int, hidden: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, dropout, attention_dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden, dropout=dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        """Map (B, S, D) under conditions (B, S, D)."""
        vectors = self.adaLN_modulation(cond).chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = vectors
        x = x + gate1 * self.attn(moved(self.norm1(x), shift1, scale1), mask)
        return x + gate2 * self.mlp(moved(self.norm2(x), shift2, scale2))


class Attention(nn.Module):
    """Self-attention of normalised queries and keys under an additive mask."""

    def __init__(self, dim: int, heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, attention_dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads, eps=1e-6)
        self.k_norm = nn.LayerNorm(dim // heads, eps=1e-6)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (B, S, D) under a mask (S, S)."""
        B, S, D = x.shape
        qkv = self.qkv(x).reshape(B, S, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        rate = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        return self.proj_drop(self.proj(y.transpose(1, 2).reshape(B, S, D)))


class LastNorm(nn.Module):
    """The norm before the head, whose condition gives the scale first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Map (B, S, D) under conditions (B, S, D)."""
        scale, shift = self.adaLN_modulation(cond).chunk(2, dim=-1)
        return moved(self.norm_final(x), shift, scale)


def moved(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (1 + scale) + shift."""
    return x * (1 + scale) + shift


def pick(rows: Tensor, orders: Tensor) -> Tensor:
    """Return each sample's rows (B, L, ...) in its order (B, L)."""
    # On the host whatever the device, as published.
    sample = torch.arange(len(rows))[:, None].expand(-1, orders.shape[1])
    return rows[sample, orders]
