"""VAR's training step (FoundationVision/VAR, MIT), written anew from its description.

The quantiser's sums of scales are part of the step, as there; encoding images is not. Without
flash-attn and xformers, which the script uses if they are installed, attention is torch's. Where
argen differs: the mask there is added to the logits and kept as a buffer, and the tokens between
blocks have autocast's type, not float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from released.step import ReleasedNetwork
from released.var_inputs import Quantizer

SPARED = ("pos_1LC", "pos_start", "lvl_embed", "ada_gss", "scale_mul")  # from weight decay


class Network(ReleasedNetwork):
    """Class-conditional blocks with adaptive norms over the codes of all scales.

    Args:
        quantizer: makes the inputs.
        dim: model width D.
        layers: number of blocks.
        heads: attention heads.
        hidden: hidden width of the feed-forward layers.
        classes: number of classes without the null class.
        unit: attention between unit vectors with a learned temperature.
        shared: one modulation layer for all blocks.
        drop_path: stochastic depth of the last block.
        label_dropout: share of labels dropped.
    """

    fused = True

    def __init__(
        self,
        *,
        quantizer: Quantizer,
        dim: int,
        layers: int,
        heads: int,
        hidden: int,
        classes: int,
        unit: bool,
        shared: bool,
        drop_path: float,
        label_dropout: float,
    ) -> None:
        super().__init__()
        self.quantizer, self.classes, self.label_dropout = quantizer, classes, label_dropout
        V, C = quantizer.embedding.shape
        sides = quantizer.sides
        self.lengths = [side * side for side in sides]
        L = sum(self.lengths)
        self.word_embed = nn.Linear(C, dim)
        self.class_emb = nn.Embedding(classes + 1, dim)
        self.pos_start = nn.Parameter(torch.empty(1, self.lengths[0], dim))
        self.pos_1LC = nn.Parameter(torch.empty(1, L, dim))
        self.lvl_embed = nn.Embedding(len(sides), dim)
        self.shared_ada_lin = (
            nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim)) if shared else nn.Identity()
        )
        rates = torch.linspace(0, drop_path, layers).tolist()
        self.blocks = nn.ModuleList(
            Block(dim, heads, hidden, unit=unit, shared=shared, drop_path=rate) for rate in rates
        )
        level = torch.cat([torch.full((n,), k) for k, n in enumerate(self.lengths)])
        self.lvl_1L: Tensor
        self.attn_bias_for_masking: Tensor
        self.register_buffer("lvl_1L", level[None])
        bias = torch.where(level[:, None] >= level, 0.0, -torch.inf)
        self.register_buffer("attn_bias_for_masking", bias[None, None].contiguous())
        self.head_nm = HeadNorm(dim)
        self.head = nn.Linear(dim, V)
        std = (3 * dim) ** -0.5
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
        nn.init.trunc_normal_(self.pos_start, std=std)
        nn.init.trunc_normal_(self.pos_1LC, std=std)

    @classmethod
    def like(cls, generator: Any) -> Network:
        """Return one of a VAR's sizes, with the quantiser that it is bound to."""
        block = generator.blocks[0]
        return cls(
            quantizer=Quantizer(generator.pyramid),
            dim=generator.embed.out_features,
            layers=len(generator.blocks),
            heads=generator.heads,
            hidden=block.ffn.fc1.out_features,
            classes=generator.conditioner.num_classes,
            unit=hasattr(block.attention.q_norm, "log_scale"),
            shared=generator.shared_modulation is not None,
            drop_path=generator.blocks[-1].drop_path.rate,
            label_dropout=generator.conditioner.drop_rate,
        )

    def forward(self, codes: Tensor, label: Tensor) -> Tensor:
        """Return the mean cross entropy of codes (B, L); labels are dropped in any mode."""
        return self.loss(
            codes, label, dropped=torch.rand(len(label), device=label.device) < self.label_dropout
        )

    def loss(self, codes: Tensor, label: Tensor, *, dropped: Tensor) -> Tensor:
        """Return the loss with the null class where `dropped` (B,) is true."""
        maps = codes.split(self.lengths, dim=1)
        target = torch.cat(maps, dim=1)
        with torch.autocast(codes.device.type, enabled=False):
            inputs = self.quantizer.inputs(maps)
        logits = self.logits(inputs, torch.where(dropped, self.classes, label))
        nll = F.cross_entropy(
            logits.view(-1, logits.shape[-1]), target.view(-1), reduction="none"
        ).view(target.shape)
        weight = torch.ones(1, nll.shape[1], device=nll.device) / nll.shape[1]
        return nll.mul(weight).sum(dim=-1).mean()

    def logits(self, inputs: Tensor, label: Tensor) -> Tensor:
        """Return logits (B, L, V) of inputs (B, L - n_0, C)."""
        B = len(label)
        with torch.autocast(inputs.device.type, enabled=False):
            cond = self.class_emb(label)
            start = cond[:, None].expand(B, self.lengths[0], -1) + self.pos_start.expand(B, -1, -1)
            x = torch.cat((start, self.word_embed(inputs.float())), dim=1)
            x += self.lvl_embed(self.lvl_1L.expand(B, -1)) + self.pos_1LC
        shared = self.shared_ada_lin(cond)
        if not isinstance(self.shared_ada_lin, nn.Identity):
            shared = shared.view(B, 1, 6, -1)
        # A product tells autocast's type; everything between the blocks takes it.
        probe = x.new_ones(8, 8)
        dtype = torch.matmul(probe, probe).dtype
        x, shared = x.to(dtype), shared.to(dtype)
        bias = self.attn_bias_for_masking.to(dtype)
        for block in self.blocks:
            x = block(x, shared, bias)
        return self.head(self.head_nm(x.float(), cond).float()).float()

    def spared(self, name: str, parameter: nn.Parameter) -> bool:
        """Tables and temperatures do not decay."""
        return parameter.ndim == 1 or name.endswith("bias") or any(part in name for part in SPARED)


class Block(nn.Module):
    """Attention and a feed-forward layer, both scaled, shifted and gated by the class."""

    def __init__(
        self, dim: int, heads: int, hidden: int, *, unit: bool, shared: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.dim, self.drop_path = dim, drop_path
        self.attn = Attention(dim, heads, unit=unit)
        self.ffn = FeedForward(dim, hidden)
        self.ln_wo_grad = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.shared = shared
        if shared:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, dim) / dim**0.5)
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, cond: Tensor, bias: Tensor) -> Tensor:
        """Map (B, L, D) under a condition (B, D), or (B, 1, 6, D) if shared."""
        if self.shared:
            vectors = self.ada_gss + cond
        else:
            vectors = self.ada_lin(cond).view(-1, 1, 6, self.dim)
        gate1, gate2, scale1, scale2, shift1, shift2 = vectors.unbind(2)
        h = self.ln_wo_grad(x).mul(scale1.add(1)).add_(shift1)
        x = x + self._drop(self.attn(h, bias).mul_(gate1))
        h = self.ln_wo_grad(x).mul(scale2.add(1)).add_(shift2)
        return x + self._drop(self.ffn(h).mul(gate2))

    def _drop(self, x: Tensor) -> Tensor:
        """Drop whole rows, rescaled."""
        if self.drop_path == 0 or not self.training:
            return x
        keep = 1 - self.drop_path
        return x * x.new_empty(len(x), 1, 1).bernoulli_(keep).div_(keep)


class Attention(nn.Module):
    """Self-attention whose keys have no bias."""

    def __init__(self, dim: int, heads: int, *, unit: bool) -> None:
        super().__init__()
        self.heads, self.unit = heads, unit
        self.scale = 1.0 if unit else 0.25 / math.sqrt(dim // heads)
        if unit:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), 4.0).log())
        self.mat_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.zero_k_bias: Tensor
        self.register_buffer("zero_k_bias", torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Map (B, L, D); `bias` (1, 1, L, L) is added to the logits."""
        B, L, D = x.shape
        qkv_bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        qkv = F.linear(x, self.mat_qkv.weight, qkv_bias).view(B, L, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.unit:
            factor = self.scale_mul_1H11.clamp_max(math.log(100)).exp()
            q, k = F.normalize(q, dim=-1).mul(factor), F.normalize(k, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return self.proj(y.transpose(1, 2).reshape(B, L, D))


class FeedForward(nn.Module):
    """fc2(gelu(fc1 x))."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(dim, hidden), nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D)."""
        return self.fc2(self.act(self.fc1(x)))


class HeadNorm(nn.Module):
    """A norm scaled and shifted by the class."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ln_wo_grad = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Map (B, L, D) under (B, D)."""
        scale, shift = self.ada_lin(cond).view(len(cond), 1, 2, -1).unbind(2)
        return self.ln_wo_grad(x).mul(scale.add(1)).add_(shift)
