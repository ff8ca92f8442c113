"""MAR's training step (LTH14/mar, MIT), written anew from its description.

Where argen differs: all codes are projected there before the known ones are picked out by the
indices of a mask, orders are shuffled on the host sample by sample, and the diffusion head sees
every position, the known ones too, whose errors are then thrown away (see `mar_diffusion`).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from released.mar_diffusion import DiffusionLoss
from released.step import ReleasedNetwork
from released.vit import Block


class Network(ReleasedNetwork):
    """Encoder over the known codes, decoder over all, diffusion over the masked ones.

    Letters: B batch, L positions, S buffer, C code width, D encoder and E decoder width.
    """

    weight_decay = 0.02

    def __init__(
        self,
        *,
        code_dim: int,
        length: int,
        buffer: int,
        dim: int,
        depth: int,
        heads: int,
        decoder_dim: int,
        decoder_depth: int,
        decoder_heads: int,
        mlp_ratio: float,
        norm_eps: float,
        dropout: float,
        attention_dropout: float,
        classes: int,
        label_dropout: float,
        mask_ratio: tuple[float, float, float],
        head_width: int,
        head_depth: int,
        repeats: int,
    ) -> None:
        super().__init__()
        self.buffer, self.length, self.repeats = buffer, length, repeats
        self.label_dropout, self.mask_ratio = label_dropout, mask_ratio
        self.host = np.random.default_rng()
        self.class_emb = nn.Embedding(classes, dim)
        self.fake_latent = nn.Parameter(torch.empty(1, dim))
        self.z_proj = nn.Linear(code_dim, dim)
        self.z_proj_ln = nn.LayerNorm(dim, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, buffer + length, dim))

        def stack(width: int, count: int, heads: int) -> nn.ModuleList:
            options = {"dropout": dropout, "attention_dropout": attention_dropout}
            hidden = int(width * mlp_ratio)
            return nn.ModuleList(
                Block(width, heads, hidden=hidden, norm_eps=norm_eps, **options)
                for _ in range(count)
            )

        self.encoder_blocks = stack(dim, depth, heads)
        self.encoder_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim))
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, buffer + length, decoder_dim))
        self.decoder_blocks = stack(decoder_dim, decoder_depth, decoder_heads)
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=norm_eps)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, length, decoder_dim))
        self.diffloss = DiffusionLoss(
            code_dim=code_dim, cond_dim=decoder_dim, width=head_width, depth=head_depth
        )
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                nn.init.normal_(parameter, std=0.02)

    @classmethod
    def like(cls, generator: Any) -> Network:
        """Return one of a MAR's sizes."""
        network, head = generator.network, generator.head
        block, decoder_block = network.encoder_blocks[0], network.decoder_blocks[0]
        dim = network.input.out_features
        return cls(
            code_dim=network.input.in_features,
            length=network.length,
            buffer=network.buffer,
            dim=dim,
            depth=len(network.encoder_blocks),
            heads=block.attention.heads,
            decoder_dim=network.decoder_embed.out_features,
            decoder_depth=len(network.decoder_blocks),
            decoder_heads=decoder_block.attention.heads,
            mlp_ratio=block.ffn.fc1.out_features / dim,
            norm_eps=network.encoder_norm.eps,
            dropout=block.attention.dropout.p,
            attention_dropout=block.attention.attention_dropout,
            classes=generator.conditioner.num_classes,
            label_dropout=generator.conditioner.drop_rate,
            mask_ratio=generator.mask_ratio,
            head_width=head.net.input.out_features,
            head_depth=len(head.net.blocks),
            repeats=head.repeats,
        )

    def forward(self, codes: Tensor, label: Tensor) -> Tensor:
        """Return the mean diffusion loss of the masked ones of codes (B, L, C)."""
        order = np.stack([self._order() for _ in codes])
        masked = math.ceil(self.length * self._ratio())
        return self.loss(
            codes, label, order=torch.from_numpy(order).to(codes.device), masked=masked
        )

    def _order(self) -> np.ndarray:
        """Shuffle the positions."""
        order = np.array(list(range(self.length)))
        self.host.shuffle(order)
        return order

    def _ratio(self) -> float:
        """Draw the masked share from a normal distribution cut to [low, 1]."""
        low, mean, std = self.mask_ratio
        law = NormalDist(mean, std)
        between = self.host.uniform(law.cdf(low), law.cdf(1.0))
        return min(1.0, max(low, law.inv_cdf(between)))

    def loss(
        self,
        codes: Tensor,
        label: Tensor,
        *,
        order: Tensor,
        masked: int,
        t: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return the loss under given draws.

        Args:
            codes: (B, L, C).
            label: (B,).
            order: a permutation of the positions for each sample (B, L).
            masked: how many of its first ones are masked.
            t: timesteps (repeats * B * L,); fresh ones when None.
            noise: normal noise (repeats * B * L, C); fresh when None.
        """
        vectors = self.class_emb(label)
        target = codes.clone().detach()
        mask = torch.zeros(codes.shape[:2], device=codes.device)
        mask = torch.scatter(mask, -1, order[:, :masked], torch.ones_like(mask))  # B L
        z = self._decode(self._encode(codes, mask, vectors), mask)
        return self.diffloss(
            target=target.reshape(mask.numel(), -1).repeat(self.repeats, 1),
            z=z.reshape(mask.numel(), -1).repeat(self.repeats, 1),
            mask=mask.reshape(-1).repeat(self.repeats),
            t=t,
            noise=noise,
        )

    def _encode(self, codes: Tensor, mask: Tensor, vectors: Tensor) -> Tensor:
        """Return (B, S + known, D)."""
        x = self.z_proj(codes)
        B, _, D = x.shape
        x = torch.cat((torch.zeros(B, self.buffer, D, device=x.device), x), dim=1)
        if self.training:
            dropped = (torch.rand(B) < self.label_dropout)[:, None].to(x.device).to(x.dtype)
            vectors = dropped * self.fake_latent + (1 - dropped) * vectors
        x[:, : self.buffer] = vectors[:, None]
        x = self.z_proj_ln(x + self.encoder_pos_embed_learned)
        x = x[self._kept(mask)].reshape(B, -1, D)
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_norm(x)

    def _decode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return a vector of every position (B, L, E)."""
        x = self.decoder_embed(x)
        everywhere = self.mask_token.repeat(len(mask), self.buffer + self.length, 1).to(x.dtype)
        full = everywhere.clone()
        full[self._kept(mask)] = x.reshape(-1, x.shape[-1])
        x = full + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)[:, self.buffer :] + self.diffusion_pos_embed_learned

    def _kept(self, mask: Tensor) -> tuple[Tensor, ...]:
        """Return the indices of the buffer and of the known codes."""
        buffer = torch.zeros(len(mask), self.buffer, device=mask.device)
        return (1 - torch.cat((buffer, mask), dim=1)).nonzero(as_tuple=True)

    def spared(self, name: str, parameter: nn.Parameter) -> bool:
        """Nothing of the diffusion head decays."""
        return parameter.ndim == 1 or name.endswith(".bias") or "diffloss" in name
