"""Multi-scale residual vector quantisation: VAR's pyramid (arXiv 2404.02905).

Scale after scale, what is still missing from the latent map is shrunk to the scale's grid, each
cell takes its nearest codebook row, and the rows, blown up and smoothed by a small convolution
phi, are added to the map so far. The generator reads the same map, shrunk to its next scale.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError
from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.tokenizers.quantizers.base import Quantized, Quantizer, nearest_code, straight_through
from argen.tokenizers.quantizers.hits import HitCounter

Scales = tuple[tuple[int, int], ...]


def as_scales(scales: Sequence[int | Sequence[int]]) -> Scales:
    """Return (h, w) pairs from sides or pairs, coarse first."""
    pairs = [(s, s) if isinstance(s, int) else (int(s[0]), int(s[1])) for s in scales]
    if not pairs or min(min(pair) for pair in pairs) < 1:
        raise UserError(f"A pyramid needs scales of at least 1x1, not {list(scales)}.")
    h, w = pairs[-1]
    if any(pair[0] > h or pair[1] > w for pair in pairs):
        raise UserError(f"The last scale must be the finest, but {list(scales)} ends at {h}x{w}.")
    return tuple(pairs)


def phi_of_scale(phis: int, scales: int) -> list[int]:
    """Return which of `phis` convolutions each of `scales` scales uses.

    The phis stand at even ticks in [0, 1] and a scale takes the one nearest to its own place there.
    Some scales lie exactly between two ticks, so the float64 arithmetic is part of the rule.
    """
    margin = 1 / (3 * phis) if phis == 4 else 1 / (2 * phis)
    ticks = np.linspace(margin, 1 - margin, phis)
    return [int(np.argmin(np.abs(ticks - k / max(1, scales - 1)))) for k in range(scales)]


class Phi(nn.Conv2d):
    """(1 - ratio) x + ratio conv3x3(x), in float32 whatever type its weights have."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__(dim, dim, 3, padding=1)
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        """Smooth (B, C, h, w)."""
        bias = None if self.bias is None else self.bias.float()
        y = F.conv2d(x, self.weight.float(), bias, padding=1)
        return x * (1 - self.ratio) + y * self.ratio


class MultiScaleVQ(Quantizer):
    """One codebook over a pyramid of grids.

    Takes latent maps (B, h, w, C) and gives ids (B, L), all scales one after another, coarse
    first. Maps inside are (B, C, h, w).

    Args:
        codes: number of rows V, shared by all scales.
        dim: width C.
        scales: sides, or (h, w) pairs, coarse first; the last is the latent map's own.
        phis: number of smoothing convolutions: 1 shared by all scales, one per scale, or any
            number between, spread evenly (4 in the released tokenizer).
        phi_ratio: weight of the convolution; 0 means no smoothing at all.
        cosine: compare by cosine similarity instead of distance; the rows added are raw.
        hit_counter: see `HitCounter`.
    """

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        scales: Sequence[int | Sequence[int]],
        phis: int = 4,
        phi_ratio: float = 0.5,
        cosine: bool = False,
        hit_counter: str = "step",
    ) -> None:
        super().__init__()
        if phi_ratio > 0 and phis < 1:
            raise UserError("A pyramid needs at least one phi, or phi_ratio=0 to have none.")
        self.dim, self.vocab_sizes, self.cosine = dim, (codes,), cosine
        self.scales = as_scales(scales)
        self.codebook = nn.Embedding(codes, dim)
        # Far rows are never chosen and so never move: a start at unit scale collapses.
        nn.init.uniform_(self.codebook.weight, -1.0 / codes, 1.0 / codes)
        self.phis = nn.ModuleList(Phi(dim, phi_ratio) for _ in range(phis if phi_ratio > 0 else 0))
        self.hits = HitCounter(len(self.scales), codes, counter=hit_counter)

    def ends(self, scales: Scales | None = None) -> list[int]:
        """Return how many codes there are up to each scale."""
        return np.cumsum([h * w for h, w in scales or self.scales]).tolist()

    def embed(self, ids: Tensor) -> Tensor:
        """Return the codebook vectors (..., C) of ids (...)."""
        return F.embedding(ids, self.codebook.weight.float())

    def init_f_hat(self, batch: int, scales: Scales | None = None) -> Tensor:
        """Return the map f_hat (B, C, h, w) before the first scale: zeros."""
        return self.codebook.weight.new_zeros(
            batch, self.dim, *(scales or self.scales)[-1], dtype=torch.float32
        )

    def add_scale(
        self, f_hat_BChw: Tensor, vectors_BnC: Tensor, k: int, scales: Scales | None = None
    ) -> Tensor:
        """Return f_hat (B, C, h, w) with the vectors of scale `k` added."""
        return f_hat_BChw + self.upsample(vectors_BnC, k, scales)

    @float32
    def upsample(self, vectors_BnC: Tensor, k: int, scales: Scales | None = None) -> Tensor:
        """Return the vectors of scale `k` on the finest grid, smoothed, (B, C, h, w)."""
        scales = scales or self.scales
        x = vectors_BnC.transpose(1, 2).unflatten(2, scales[k])  # B C h_k w_k
        if k < len(scales) - 1:
            x = F.interpolate(x, size=scales[-1], mode="bicubic")
        if len(self.phis):
            x = self.phis[phi_of_scale(len(self.phis), len(scales))[k]](x)
        return x

    @float32
    def downsample_to(self, map_BChw: Tensor, k: int, scales: Scales | None = None) -> Tensor:
        """Return a map on the grid of scale `k`, as vectors (B, n, C)."""
        scales = scales or self.scales
        if k < len(scales) - 1:
            map_BChw = F.interpolate(map_BChw, size=scales[k], mode="area")
        return map_BChw.flatten(2).transpose(1, 2)

    def maps(self, ids_BL: Tensor, scales: Scales | None = None) -> list[Tensor]:
        """Return f_hat (B, C, h, w) after each scale of ids that end at any scale."""
        scales = scales or self.scales
        ends, maps = self.ends(scales), []
        if ids_BL.shape[1] not in ends:
            raise UserError(
                f"{ids_BL.shape[1]} codes end inside a scale; whole scales end after "
                f"{', '.join(map(str, ends))} codes."
            )
        f_hat = self.init_f_hat(ids_BL.shape[0], scales)
        for k in range(ends.index(ids_BL.shape[1]) + 1):
            ids = ids_BL[:, ends[k - 1] if k else 0 : ends[k]]
            f_hat = self.add_scale(f_hat, self.embed(ids), k, scales)
            maps.append(f_hat)
        return maps

    def next_scale_inputs(self, ids_BL: Tensor) -> Tensor:
        """Return what a generator reads for every scale but the first, (B, L - n_0, C).

        Scale k + 1 reads f_hat after scale k, downsampled to its grid.
        """
        maps = self.maps(ids_BL)[:-1]
        read = [self.downsample_to(f_hat, k + 1) for k, f_hat in enumerate(maps)]
        return torch.cat(read, dim=1) if read else self.embed(ids_BL[:, :0])

    def frozen(self) -> MultiScaleVQ:
        """Return a copy without parameters or saved state, to be held by a generator.

        It follows its holder to other devices, but is no part of its weights.
        """
        twin = copy.deepcopy(self)
        for module in twin.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach().clone(), persistent=False)
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)
        return twin

    def _search(self, r_BnC: Tensor) -> Tensor:
        rows, flat = self.codebook.weight.float(), r_BnC.reshape(-1, self.dim)
        if self.cosine:
            rows, flat = F.normalize(rows, dim=-1), F.normalize(flat, dim=-1)
        return nearest_code(flat, rows.detach()).view(r_BnC.shape[:2])

    def _walk(self, z_BChw: Tensor, scales: Scales) -> list[tuple[Tensor, Tensor]]:
        """Return the ids (B, n) of each scale and f_hat (B, C, h, w) after it."""
        if tuple(z_BChw.shape[2:]) != scales[-1]:
            (h, w), (H, W) = z_BChw.shape[2:], scales[-1]
            raise UserError(
                f"The latent map is {h}x{w}, but the scales end at {H}x{W}: give images of the "
                f"tokenizer's own size, or scales that end at {h}x{w}."
            )
        rest, f_hat, steps = z_BChw.detach(), self.init_f_hat(z_BChw.shape[0], scales), []
        for k in range(len(scales)):
            ids = self._search(self.downsample_to(rest, k, scales))
            added = self.upsample(self.embed(ids), k, scales)
            f_hat, rest = f_hat + added, rest - added.detach()
            steps.append((ids, f_hat))
        return steps

    @float32
    def encode(
        self, z: Tensor, *, noise: Noise | None = None, scales: Scales | None = None
    ) -> Tensor:
        """Return ids (B, L) of latent maps (B, h, w, C)."""
        steps = self._walk(z.permute(0, 3, 1, 2), scales or self.scales)
        return torch.cat([ids for ids, _ in steps], dim=1)

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise maps (B, h, w, C).

        Losses `codebook` and `commitment` are means over the maps after each scale; `metrics`
        holds the usage and the perplexity of the codes of each scale, while training.
        """
        z_BChw = z.permute(0, 3, 1, 2)
        steps = self._walk(z_BChw, self.scales)
        losses = {
            "codebook": torch.stack([F.mse_loss(m, z_BChw.detach()) for _, m in steps]).mean(),
            "commitment": torch.stack([F.mse_loss(z_BChw, m.detach()) for _, m in steps]).mean(),
        }
        metrics: dict[str, Tensor] = {}
        if self.training:
            self.hits.update([ids for ids, _ in steps])
            metrics = self.hits.metrics([ids.numel() for ids, _ in steps])
        quantized = straight_through(z_BChw, steps[-1][1]).permute(0, 2, 3, 1)
        ids = torch.cat([ids for ids, _ in steps], dim=1)
        return Quantized(z=quantized, ids=ids, losses=losses, metrics=metrics)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the map (B, h, w, C) of ids (B, n) that end at any scale."""
        return self.maps(ids)[-1].permute(0, 2, 3, 1)
