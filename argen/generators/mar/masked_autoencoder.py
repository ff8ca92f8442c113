"""The network of MAR: an encoder over what is known, a decoder over all positions.

A masked autoencoder (arXiv 2111.06377) as in arXiv 2406.11838, made of:
- a linear input layer and a LayerNorm
- learned absolute positions: of the encoder, of the decoder, and of the outputs
- two stacks of ViT blocks: LayerNorm, attention, GELU MLP, biases; the encoder over condition
  buffer and known codes, the decoder over all positions, unknown ones as mask tokens

Shapes: R rows, L positions, K known ones, S buffer positions that hold the condition, C code width,
D encoder width, E decoder width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from argen.layers.gradient_checkpointing import enable_gradient_checkpointing
from argen.layers.init import init_xavier
from argen.layers.steps import take
from argen.layers.transformer import Block


class MaskedAutoencoder(nn.Module):
    """Maps known codes and a condition to a hidden vector of every position.

    Args:
        code_dim: C.
        length: L; position tables are learned for exactly these positions.
        buffer: S.
        dim: encoder width D.
        depth: encoder blocks.
        heads: encoder attention heads.
        decoder_dim: decoder width E.
        decoder_depth: decoder blocks.
        decoder_heads: decoder attention heads.
        mlp_ratio: hidden width of the feed-forward layers over their width.
        norm_eps: epsilon of the norms of blocks and stacks.
        dropout: dropout after attention and in the feed-forward layers.
        attention_dropout: dropout of attention weights.
        gradient_checkpointing: recompute blocks in the backward pass to save memory.
    """

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
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.buffer, self.length = buffer, length
        # 1. Encoder inputs.
        self.input = nn.Linear(code_dim, dim)
        self.input_norm = nn.LayerNorm(dim, eps=1e-6)
        self.encoder_positions = nn.Parameter(torch.empty(1, buffer + length, dim))
        # 2. Decoder inputs.
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim))
        self.decoder_positions = nn.Parameter(torch.empty(1, buffer + length, decoder_dim))
        self.out_positions = nn.Parameter(torch.empty(1, length, decoder_dim))

        # 3. Blocks.
        def stack(width: int, count: int, heads: int) -> nn.ModuleList:
            return nn.ModuleList(
                Block(
                    width,
                    heads,
                    ffn_hidden=int(width * mlp_ratio),
                    norm="layer",
                    norm_eps=norm_eps,
                    ffn="gelu",
                    bias=True,
                    attention_dropout=attention_dropout,
                    residual_dropout=dropout,
                    ffn_dropout=dropout,
                    ffn_inner_dropout=dropout,
                )
                for _ in range(count)
            )

        self.encoder_blocks = stack(dim, depth, heads)
        self.encoder_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.decoder_blocks = stack(decoder_dim, decoder_depth, decoder_heads)
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=norm_eps)
        self._init_weights()
        if gradient_checkpointing:
            enable_gradient_checkpointing(self)

    def _init_weights(self) -> None:
        init_xavier(self)
        for table in (self.encoder_positions, self.decoder_positions, self.out_positions):
            nn.init.normal_(table, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, codes_RLC: Tensor, buffer_RSD: Tensor, known_RK: Tensor, mask_RS: Tensor | None = None
    ) -> Tensor:
        """Return hidden vectors (R, L, E) of all positions.

        Args:
            codes_RLC: codes; only those at known positions are read.
            buffer_RSD: the condition.
            known_RK: positions of the known codes, ascending.
            mask_RS: true for valid buffer positions; None when all are.
        """
        encoded = self.forward_mae_encoder(codes_RLC, buffer_RSD, known_RK, mask_RS)
        return self.forward_mae_decoder(encoded, known_RK, mask_RS)

    def forward_mae_encoder(
        self, codes_RLC: Tensor, buffer_RSD: Tensor, known_RK: Tensor, mask_RS: Tensor | None = None
    ) -> Tensor:
        """Return encoder outputs (R, S + K, D): the buffer, then the known positions."""
        S = self.buffer
        known_RKD = self.input(take(codes_RLC, known_RK).to(self.input.weight.dtype))
        positions = self.encoder_positions.expand(len(known_RK), -1, -1)  # R S+L D
        at_known = take(positions[:, S:], known_RK)  # R K D
        x = torch.cat((buffer_RSD + positions[:, :S], known_RKD + at_known), dim=1)  # R S+K D
        return self.encoder_norm(self._run(self.encoder_blocks, self.input_norm(x), mask_RS))

    def forward_mae_decoder(
        self, encoded: Tensor, known_RK: Tensor, mask_RS: Tensor | None = None
    ) -> Tensor:
        """Return hidden vectors (R, L, E) of encoder outputs (R, S + K, D)."""
        S, L = self.buffer, self.length
        x = self.decoder_embed(encoded)  # R S+K E
        full = self.mask_token.to(x.dtype).expand(x.shape[0], L, -1)  # R L E
        full = full.scatter(1, known_RK[..., None].expand(-1, -1, x.shape[2]), x[:, S:])
        x = torch.cat((x[:, :S], full), dim=1) + self.decoder_positions  # R S+L E
        x = self.decoder_norm(self._run(self.decoder_blocks, x, mask_RS))
        return x[:, S:] + self.out_positions

    def _run(self, blocks: nn.ModuleList, x: Tensor, mask_RS: Tensor | None) -> Tensor:
        mask = None
        if mask_RS is not None:
            rest = mask_RS.new_ones(len(x), x.shape[1] - self.buffer, dtype=torch.bool)
            mask = torch.cat((mask_RS.bool(), rest), dim=1)[:, None, None]  # R 1 1 keys
        for block in blocks:
            x = block(x, mask=mask)
        return x
