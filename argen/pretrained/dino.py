"""DINO's ViT-S/16 (arXiv 2104.14294), read at several depths: the backbone of VAR's discriminator.

The released file `dino_deitsmall16_pretrain.pth` (Apache-2.0) is loaded by path; nothing is
downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from argen.errors import CheckpointError
from argen.layers.transformer import Block
from argen.runtime.checkpoint import read_weights

SOURCE = "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/"

RULES = (
    (r"patch_embed\.proj\.(.+)", r"patch.\1"),
    (r"blocks\.(\d+)\.norm1\.(.+)", r"blocks.\1.attention_norm.\2"),
    (r"blocks\.(\d+)\.attn\.qkv\.(.+)", r"blocks.\1.attention.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.+)", r"blocks.\1.attention.out.\2"),
    (r"blocks\.(\d+)\.norm2\.(.+)", r"blocks.\1.ffn_norm.\2"),
    (r"blocks\.(\d+)\.mlp\.(.+)", r"blocks.\1.ffn.\2"),
)


class DinoViT(nn.Module):
    """A vision transformer whose tokens are read after its embedding and after some blocks.

    Each reading is the patch tokens plus the class token, (B, L, D); it comes out of a submodule
    `readings.0`, `readings.1`, ... that can be tapped.

    Args:
        size: side of the images in pixels.
        patch: side of a patch.
        dim: width D.
        layers: number of blocks.
        heads: attention heads.
        read: blocks, from 0, after which tokens are read, besides the embedding.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        patch: int = 16,
        dim: int = 384,
        layers: int = 12,
        heads: int = 6,
        read: Sequence[int] = (2, 5, 8, 11),
    ) -> None:
        super().__init__()
        self.read = tuple(read)
        self.patch = nn.Conv2d(3, dim, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, dim))
        self.blocks = nn.ModuleList(
            Block(
                dim,
                heads,
                norm="layer",
                norm_eps=1e-6,
                ffn="gelu",
                ffn_hidden=4 * dim,
                bias=True,
            )
            for _ in range(layers)
        )
        self.readings = nn.ModuleList(nn.Identity() for _ in range(1 + len(self.read)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the readings (B, L, D) of normalised images (B, 3, size, size)."""
        x = self.patch(images).flatten(2).transpose(1, 2)  # B L D
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.pos_embed
        found = [self._reading(0, x)]
        for layer, block in enumerate(self.blocks[: max(self.read, default=-1) + 1]):
            x = block(x)
            if layer in self.read:
                found.append(self._reading(len(found), x))
        return found

    def _reading(self, index: int, x: Tensor) -> Tensor:
        return self.readings[index](x[:, 1:] + x[:, :1])


def load_dino(path: str | Path) -> DinoViT:
    """Return ViT-S/16 with the weights of a released file.

    Raises:
        CheckpointError: if the file is missing or holds another network.
    """
    found = read_weights(path)
    renamed = {}
    for key, value in found.items() if isinstance(found, dict) else ():
        for pattern, target in RULES:
            if match := re.fullmatch(pattern, key):
                key = match.expand(target)
                break
        # The last norm stands behind every reading.
        if not key.startswith("norm."):
            renamed[key] = value
    network = DinoViT()
    try:
        network.load_state_dict(renamed)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not hold DINO's ViT-S/16 ({str(error).splitlines()[1].strip()[:120]}); "
            f"get the backbone file from {SOURCE}."
        ) from error
    return network.eval()
