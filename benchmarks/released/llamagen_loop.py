"""The released LlamaGen sampling loop, written anew from its description, to compare with.

What it does at every token, and argen does not: attention reads the whole cache under a mask, keys
and values are repeated for grouped queries even where there is nothing to repeat, the mask row is
looked up, and rotary positions, norms and the gated layer take their separate steps. Weights are
those of an argen GPT, and greedy codes agree (tested).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from argen.generators.gpt import GPT


class ReleasedLoop:
    """Static caches, mask rows and doubled guidance rows, one token a pass.

    Args:
        gpt: class-conditional, without adaptive norms.
        scale: guidance scale, above 1.
        top_k: tokens kept; 0 for all.
        greedy: take the likeliest code instead of drawing.
    """

    def __init__(self, gpt: GPT, *, scale: float, top_k: int = 0, greedy: bool = False) -> None:
        self.gpt: Any = gpt  # its parts are named below
        self.scale, self.top_k, self.greedy = scale, top_k, greedy

    @torch.no_grad()
    def __call__(self, labels_B: Tensor) -> Tensor:
        """Return codes (B, L)."""
        gpt, L = self.gpt, self.gpt.spec.length
        weight, block = gpt.head.proj.weight, gpt.blocks[0].attention
        null_B = torch.full_like(labels_B, gpt.conditioner.num_classes)
        x_R1D = gpt.conditioner.table.weight[torch.cat((labels_B, null_B))][:, None]
        slots = -(-(1 + L) // 8) * 8
        shape = (len(x_R1D), block.kv_heads, slots, block.head_dim)
        self.keys = [
            torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in gpt.blocks
        ]
        self.values = [torch.zeros_like(k) for k in self.keys]
        self.mask = torch.ones(slots, slots, dtype=torch.bool, device=weight.device).tril()
        self.mask = self.mask.expand(len(x_R1D), -1, -1)
        position = torch.zeros(1, dtype=torch.long, device=weight.device)
        codes = [self._draw(self._forward(x_R1D, position))]
        for _ in range(L - 1):
            position = position + 1
            both = torch.cat((codes[-1], codes[-1]))
            codes.append(self._draw(self._forward(gpt.embed.weight[both], position)))
        return torch.cat(codes, dim=1)

    def _forward(self, x_R1D: Tensor, position: Tensor) -> Tensor:
        """Return logits (R, V)."""
        mask = self.mask[:, None, position]
        table = self.gpt.rope_table[position]
        for i, block in enumerate(self.gpt.blocks):
            attention, ffn = block.attention, block.ffn
            R, n, D = x_R1D.shape
            width = attention.kv_heads * attention.head_dim
            qkv = attention.qkv(_rms(x_R1D, block.attention_norm))
            q, k, v = qkv.split((D, width, width), dim=-1)
            q = _turn(q.view(R, n, -1, attention.head_dim), table).transpose(1, 2)
            k = _turn(k.view(R, n, -1, attention.head_dim), table).transpose(1, 2)
            v = v.view(R, n, -1, attention.head_dim).transpose(1, 2)
            self.keys[i][:, :, position] = k
            self.values[i][:, :, position] = v
            repeats = attention.heads // attention.kv_heads
            keys = self.keys[i].repeat_interleave(repeats, dim=1)
            values = self.values[i].repeat_interleave(repeats, dim=1)
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            x_R1D = x_R1D + attention.out(y.transpose(1, 2).contiguous().view(R, n, D))
            h = _rms(x_R1D, block.ffn_norm)
            x_R1D = x_R1D + ffn.out(F.silu(ffn.gate(h)) * ffn.up(h))
        return self.gpt.head.proj(_rms(x_R1D, self.gpt.norm))[:, -1].float()

    def _draw(self, logits_RV: Tensor) -> Tensor:
        """Return the next codes (B, 1)."""
        cond, null = logits_RV.chunk(2)
        logits = null + (cond - null) * self.scale
        if self.top_k:
            kept = torch.topk(logits, self.top_k)[0][..., -1, None]
            logits = logits.masked_fill(logits < kept, float("-inf"))
        law = F.softmax(logits, dim=-1)
        if self.greedy:
            return law.topk(1, dim=-1)[1]
        return torch.multinomial(law, num_samples=1)


def _rms(x: Tensor, norm: torch.nn.Module) -> Tensor:
    wide = x.float()
    unit = wide * torch.rsqrt((wide * wide).mean(dim=-1, keepdim=True) + norm.eps)
    return unit.type_as(x) * norm.weight


def _turn(x: Tensor, table: Tensor) -> Tensor:
    """Rotate (R, n, heads, width) by (n, width / 2, 2)."""
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    table = table.view(1, x.shape[1], 1, -1, 2)
    turned = torch.stack(
        (
            pairs[..., 0] * table[..., 0] - pairs[..., 1] * table[..., 1],
            pairs[..., 1] * table[..., 0] + pairs[..., 0] * table[..., 1],
        ),
        dim=-1,
    )
    return turned.flatten(3).type_as(x)
