"""Transformers between an image and K latent tokens that have no place in it (TiTok).

The encoder reads patches together with K learned tokens and keeps only those; the decoder reads K
vectors together with one mask token a patch and keeps only the patches (arXiv 2406.07550).
Images are in [0, 1] here. P is the number of patches h * w, K the number of latent tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from argen.errors import UserError
from argen.images.pixels import as_size
from argen.layers.transformer import Block


def patch_grid(image_size: int | tuple[int, int], patch: int) -> tuple[int, int]:
    """Return the (h, w) grid of patches of an image."""
    height, width = as_size(image_size)
    if height % patch or width % patch:
        near = "x".join(str(max(1, round(side / patch)) * patch) for side in (height, width))
        raise UserError(
            f"image_size {height}x{width} is not divisible by patch={patch}; the nearest that is: "
            f"{near}."
        )
    return height // patch, width // patch


def learned(*shape: int) -> nn.Parameter:
    """Return a table of vectors with entries of standard deviation width ** -0.5."""
    return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)


def vit_blocks(dim: int, heads: int, layers: int) -> nn.ModuleList:
    """Return pre-norm blocks with LayerNorm, biases and a GELU layer of four times the width."""
    return nn.ModuleList(
        Block(dim, heads, ffn_hidden=4 * dim, norm="layer", ffn="gelu", bias=True)
        for _ in range(layers)
    )


def init_truncated(module: nn.Module, *, std: float) -> None:
    """Give every linear, convolution and embedding inside truncated normal weights, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=std)
            bias = getattr(part, "bias", None)
            if isinstance(bias, nn.Parameter):
                nn.init.zeros_(bias)


class LatentEncoder(nn.Module):
    """Image to K vectors.

    Args:
        image_size: side, or (H, W), of the only size it reads.
        patch: side of a patch.
        latents: number of latent tokens K.
        out_channels: width of the K vectors.
        dim: model width D.
        layers: number of blocks.
        heads: attention heads.
        init_std: standard deviation of the initial weights. The published 0.02 suits wide networks;
            narrow ones start blind to the image with it.
        legacy_layout: read the (K, D) buffer of the latent tokens as (D, K) before the last layer,
            which mixes the latents; the released two-stage models were trained that way.
    """

    no_decay = ("class_token", "positions", "latent_tokens", "latent_positions")

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch: int,
        latents: int,
        out_channels: int,
        dim: int,
        layers: int,
        heads: int,
        init_std: float = 0.02,
        legacy_layout: bool = False,
    ) -> None:
        super().__init__()
        self.image_size, self.factor = as_size(image_size), patch
        self.latents, self.legacy_layout = latents, legacy_layout
        h, w = patch_grid(image_size, patch)
        self.patch = nn.Conv2d(3, dim, patch, stride=patch)
        setattr(self.patch, "no_decay", ("weight",))  # noqa: B010  as published
        self.class_token = learned(1, dim)
        self.positions = learned(1 + h * w, dim)
        self.latent_tokens = learned(latents, dim)
        self.latent_positions = learned(latents, dim)
        self.norm_in = nn.LayerNorm(dim)
        self.blocks = vit_blocks(dim, heads, layers)
        self.norm_out = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, out_channels)
        init_truncated(self, std=init_std)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to latents (B, K, out_channels)."""
        B = images.shape[0]
        x_BPD = self.patch(images).flatten(2).transpose(1, 2)
        x_BSD = torch.cat((self.class_token.expand(B, 1, -1), x_BPD), dim=1) + self.positions
        latent_KD = self.latent_tokens + self.latent_positions
        x_BSD = torch.cat((x_BSD, latent_KD.expand(B, -1, -1)), dim=1)  # S = 1 + P + K
        x_BSD = self.norm_in(x_BSD)
        for block in self.blocks:
            x_BSD = block(x_BSD)
        x_BKD = self.norm_out(x_BSD[:, -self.latents :])
        if self.legacy_layout:
            x_BKD = x_BKD.reshape(B, -1, self.latents).transpose(1, 2)
        return self.out(x_BKD)


class PixelHead(nn.Module):
    """Patch vectors to pixels: a linear layer a patch, then a 3x3 convolution over the image."""

    def __init__(self, dim: int, patch: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.patch, self.grid = patch, grid
        self.proj = nn.Linear(dim, 3 * patch * patch)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x_BPD: Tensor) -> Tensor:
        """Return images (B, 3, H, W)."""
        B, (h, w), p = x_BPD.shape[0], self.grid, self.patch
        x = self.proj(x_BPD).view(B, h, w, p, p, 3)  # the channel varies fastest
        return self.conv(x.permute(0, 5, 1, 3, 2, 4).reshape(B, 3, h * p, w * p))


class ProxyHead(nn.Module):
    """Patch vectors to logits over the codes of a 2-D tokenizer on the same grid."""

    def __init__(self, dim: int, codes: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.codes, self.grid = codes, grid
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, codes)

    def forward(self, x_BPD: Tensor) -> Tensor:
        """Return logits (B, h, w, codes)."""
        return self.fc2(torch.tanh(self.fc1(x_BPD))).unflatten(1, self.grid)


class LatentDecoder(nn.Module):
    """K vectors, or a prefix of them, to an image or to proxy-code logits.

    Args:
        image_size: side, or (H, W), of the image.
        patch: side of a patch.
        latents: the most latent tokens K.
        in_channels: width of the vectors.
        dim: model width D.
        layers: number of blocks.
        heads: attention heads.
        proxy_codes: give logits over this many codes of a 2-D tokenizer instead of pixels.
        text_dim: width F of text features that are read beside the latents (TA-TiTok,
            arXiv 2501.07730); 0 for none.
        text_length: number of text features T.
        init_std: as in `LatentEncoder`.
    """

    no_decay = ("class_token", "mask_token", "positions", "latent_positions", "text_positions")

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch: int,
        latents: int,
        in_channels: int,
        dim: int,
        layers: int,
        heads: int,
        proxy_codes: int = 0,
        text_dim: int = 0,
        text_length: int = 77,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.grid = patch_grid(image_size, patch)
        h, w = self.grid
        self.embed = nn.Linear(in_channels, dim)
        setattr(self.embed, "no_decay", ("weight",))  # noqa: B010  as published
        self.class_token = learned(1, dim)
        self.mask_token = learned(1, dim)
        self.positions = learned(1 + h * w, dim)
        self.latent_positions = learned(latents, dim)
        self.text_proj = nn.Linear(text_dim, dim) if text_dim else None
        self.text_positions = learned(text_length, dim) if text_dim else None
        self.norm_in = nn.LayerNorm(dim)
        self.blocks = vit_blocks(dim, heads, layers)
        self.norm_out = nn.LayerNorm(dim)
        self.head: PixelHead | ProxyHead = (
            ProxyHead(dim, proxy_codes, self.grid)
            if proxy_codes
            else PixelHead(dim, patch, self.grid)
        )
        init_truncated(self, std=init_std)

    def forward(self, z_BnC: Tensor, text_BTF: Tensor | None = None) -> Tensor:
        """Map latents (B, n, C), n <= K, to images (B, 3, H, W) or logits (B, h, w, codes)."""
        B, n, P = z_BnC.shape[0], z_BnC.shape[1], self.grid[0] * self.grid[1]
        masks_BPD = self.mask_token.expand(B, P, -1)
        x_BSD = torch.cat((self.class_token.expand(B, 1, -1), masks_BPD), dim=1) + self.positions
        latent_BnD = self.embed(z_BnC.to(self.embed.weight.dtype)) + self.latent_positions[:n]
        parts = [x_BSD, latent_BnD, *self._text(text_BTF)]
        x_BSD = self.norm_in(torch.cat(parts, dim=1))  # S = 1 + P + n + T
        for block in self.blocks:
            x_BSD = block(x_BSD)
        return self.head(self.norm_out(x_BSD[:, 1 : 1 + P]))

    def _text(self, text_BTF: Tensor | None) -> list[Tensor]:
        if self.text_proj is None or self.text_positions is None:
            if text_BTF is not None:
                raise UserError("This tokenizer does not read text: leave text out.")
            return []
        wanted = (self.text_positions.shape[0], self.text_proj.in_features)
        if text_BTF is None or tuple(text_BTF.shape[1:]) != wanted:
            found = "none were given" if text_BTF is None else f"not {tuple(text_BTF.shape)}"
            raise UserError(
                f"This decoder is text-aware: it needs text features (B, {wanted[0]}, {wanted[1]})"
                f", {found}. Pass text= from the encoder it was trained with."
            )
        return [self.text_proj(text_BTF) + self.text_positions]
