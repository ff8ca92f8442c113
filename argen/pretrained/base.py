"""What every feature extractor offers: frozen features and the facts that fix their numbers.

Shapes: B batch, H W pixels, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import UserError


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Switch off autocast, TF32 and bf16 shortcuts: a score must not follow a speed setting."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    try:
        with torch.autocast(device.type, enabled=False), cudnn:
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class FeatureExtractor(nn.Module):
    """What every extractor offers.

    Attributes:
        name: the extractor's name in protocols and results.
        dim: width D of the `pool` features.
        sha256: of the weight file, so that two numbers of different weights never look alike.
    """

    name: str
    dim: int
    sha256: str

    def protocol(self) -> dict[str, Any]:
        """Return every fact that changes a feature: name, width, weights, resize, rounding."""
        raise NotImplementedError

    def forward(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        """Return float32 features, at least `pool` (B, D).

        Args:
            images_B3HW: floats in [-1, 1], which are rounded to 8 bits first, or uint8.
        """
        raise NotImplementedError

    def feature_dim(self, name: str) -> int:
        """Return the width of the features of that name.

        Raises:
            UserError: the network does not give them.
        """
        width = self.dim if name == "pool" else getattr(self, f"{name}_dim", None)
        if width is None:
            raise UserError(
                f"{self.name} gives no {name} features: use extractor=inception_v3_compat."
            )
        return int(width)

    @torch.inference_mode()
    def extract(self, images: Tensor | Iterable[Tensor], *, batch_size: int = 32) -> Tensor:
        """Return the `pool` features of all images, float32 (N, D) on the CPU.

        Args:
            images: one tensor (N, 3, H, W) or batches of them, in [-1, 1] or uint8.
            batch_size: images that go through the network at once.
        """
        batches = [images] if isinstance(images, Tensor) else images
        parts = [self(part)["pool"].float().cpu() for b in batches for part in b.split(batch_size)]
        return torch.cat(parts) if parts else torch.zeros(0, self.dim)

    @property
    def device(self) -> torch.device:
        """Where the weights are; images are moved there."""
        return next(self.parameters()).device
