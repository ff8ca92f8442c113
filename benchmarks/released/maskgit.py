"""MaskGIT's training step in bytedance/1d-tokenizer (Apache-2.0), written anew.

Where argen differs: codes and classes there lie in one table, logits are turned to (B, V, L) for
the loss, and AdamW is not fused. The blocks tell more; averaging of weights and logging stay out.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.generators.maskgit.uvit import MaskGITUViT
from released.maskgit_blocks import BertEmbeddings, BertLayer, UViTBlock
from released.step import ReleasedNetwork

SPARED = ("ln", "bias", "latent_tokens", "mask_token", "norm", "gamma", "embed")  # from decay


class Network(ReleasedNetwork):
    """What both networks share: masks, labels and the loss.

    Args:
        vocab: number of codes V; the mask's id follows, then classes and the null class.
        classes: number of classes.
        label_dropout: share of labels dropped.
        label_smoothing: of the cross entropy.
        unmasked_weight: weight of the loss where nothing is masked.
    """

    lr = 2e-4
    betas = (0.9, 0.96)
    weight_decay = 0.03

    def __init__(
        self,
        *,
        vocab: int,
        classes: int,
        label_dropout: float,
        label_smoothing: float,
        unmasked_weight: float,
    ) -> None:
        super().__init__()
        self.vocab, self.classes, self.label_dropout = vocab, classes, label_dropout
        self.label_smoothing, self.unmasked_weight = label_smoothing, unmasked_weight
        self.accuracy = torch.zeros(())

    @classmethod
    def like(cls, generator: Any) -> Network:
        """Return a BERT or U-ViT of a MaskGIT's sizes."""
        uvit = isinstance(generator, MaskGITUViT)
        block = generator.middle.block if uvit else generator.blocks[0]
        sizes: dict[str, Any] = {
            "dim": generator.embed.embedding_dim,
            "heads": block.attention.heads,
            "hidden": block.ffn.fc1.out_features,
            "length": generator.spec.length + 1,
            "vocab": generator.spec.vocab_size,
            "classes": generator.conditioner.num_classes,
            "label_dropout": generator.conditioner.drop_rate,
            "label_smoothing": generator.label_smoothing,
            "unmasked_weight": generator.unmasked_weight,
        }
        if uvit:
            return UViT(half=len(generator.in_blocks), **sizes)
        return Bert(
            layers=len(generator.blocks),
            dropout=generator.dropout.p,
            attention_dropout=block.attention.attention_dropout,
            **sizes,
        )

    @abstractmethod
    def logits(self, ids: Tensor) -> Tensor:
        """Return logits (B, L, V) of ids (B, 1 + L) that start with the class."""

    def forward(self, codes: Tensor, label: Tensor) -> Tensor:
        """Return the mean loss of codes (B, L); labels are dropped in any mode."""
        return self.loss(
            codes,
            label,
            progress=torch.zeros(len(codes), device=codes.device).uniform_(0, 1),
            order=torch.rand(codes.shape, device=codes.device),
            dropped=torch.rand_like(label, dtype=torch.float) < self.label_dropout,
        )

    def loss(
        self, codes: Tensor, label: Tensor, *, progress: Tensor, order: Tensor, dropped: Tensor
    ) -> Tensor:
        """Return the loss under given draws.

        Args:
            codes: (B, L).
            label: (B,).
            progress: uniform (B,); gives the share of masked codes.
            order: uniform (B, L); the ranks say which are masked.
            dropped: where the null class takes the label's place, boolean (B,).
        """
        share = (torch.acos(progress) / (math.pi * 0.5)).clamp(min=1e-6, max=1.0)
        count = (codes.shape[1] * share).round().clamp(min=1)
        masked = order.argsort(dim=-1) < count[:, None]
        ids = torch.where(masked, self.vocab, codes)
        first = label + self.vocab + 1
        first[dropped] = self.classes + self.vocab + 1
        logits = self.logits(torch.cat((first[:, None], ids), dim=1)).transpose(1, 2)  # B V L
        nll = F.cross_entropy(logits, codes, reduction="none", label_smoothing=self.label_smoothing)
        hidden = masked.to(nll)
        weight = (1.0 - hidden) * self.unmasked_weight + hidden
        right = (torch.argmax(logits, dim=1) == codes) * hidden
        self.accuracy = (right.sum(dim=1) / (hidden.sum(dim=1) + 1e-8)).mean()
        return (nll * weight).sum() / (weight.sum() + 1e-8)

    def spared(self, name: str, parameter: nn.Parameter) -> bool:
        """Embeddings, positions and norms do not decay."""
        return parameter.ndim < 2 or any(part in name for part in SPARED)


class Bert(Network):
    """ImageBert: post-norm layers."""

    def __init__(
        self,
        *,
        dim: int,
        layers: int,
        heads: int,
        hidden: int,
        length: int,
        dropout: float,
        attention_dropout: float,
        **loss: Any,
    ) -> None:
        super().__init__(**loss)
        rates = {"dropout": dropout, "attention_dropout": attention_dropout}
        self.model = nn.Module()
        self.model.embeddings = BertEmbeddings(
            dim, ids=self.vocab + self.classes + 2, length=length, dropout=dropout
        )
        self.model.encoder = nn.Module()
        self.model.encoder.layer = nn.ModuleList(
            BertLayer(dim, heads, hidden, **rates) for _ in range(layers)
        )
        self.model.lm_head = nn.Linear(dim, self.vocab)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def logits(self, ids: Tensor) -> Tensor:
        """Return logits (B, L, V) of ids (B, 1 + L) that start with the class."""
        x = self.model.embeddings(ids)
        for layer in self.model.encoder.layer:
            x = layer(x)
        return self.model.lm_head(x[:, 1:])


class UViT(Network):
    """UViTBert: pre-norm blocks, early states joined to late ones."""

    def __init__(
        self, *, dim: int, half: int, heads: int, hidden: int, length: int, **loss: Any
    ) -> None:
        super().__init__(**loss)
        self.embeddings = nn.Embedding(self.vocab + self.classes + 2, dim)
        self.pos_embed = nn.Parameter(torch.empty(1, length, dim))
        self.in_blocks = nn.ModuleList(UViTBlock(dim, heads, hidden) for _ in range(half))
        self.mid_block = UViTBlock(dim, heads, hidden)
        self.out_blocks = nn.ModuleList(
            UViTBlock(dim, heads, hidden, skip=True) for _ in range(half)
        )
        self.norm = nn.LayerNorm(dim)
        self.lm_head = nn.Linear(dim, self.vocab)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def logits(self, ids: Tensor) -> Tensor:
        """Return logits (B, L, V) of ids (B, 1 + L) that start with the class."""
        x = self.embeddings(ids) + self.pos_embed
        states = []
        for block in self.in_blocks:
            x = block(x)
            states.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, states.pop())
        return self.lm_head(self.norm(x)[:, 1:])
