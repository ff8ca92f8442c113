"""How near reconstructions come to their originals, added up over batches and ranks.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from argen.errors import UserError
from argen.images.pixels import to_float, to_uint8
from argen.runtime.distributed import gather
from argen.spec import CodeSpec


class Paired:
    """PSNR, SSIM, LPIPS and code usage of a tokenizer.

    Args:
        spec: of the codes; usage is counted where they have a vocabulary.
        lpips_path: VGG16's weights for LPIPS; without them LPIPS is left out.
        device: where LPIPS runs.
    """

    def __init__(
        self,
        spec: CodeSpec,
        *,
        lpips_path: Path | str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.spec = spec
        self.sums: dict[str, float] = {"count": 0.0, "error": 0.0, "psnr": 0.0, "ssim": 0.0}
        self.lpips: torch.nn.Module | None = None
        if lpips_path is not None:
            from argen.pretrained.vgg_lpips import LPIPS

            self.lpips = LPIPS(vgg16=Path(lpips_path)).to(device).eval()
            self.sums["lpips"] = 0.0
        self.used: set[tuple[int, int]] = set()

    @torch.inference_mode()
    def update(self, originals: Tensor, images: Tensor, codes: Tensor) -> None:
        """Add a batch: originals and reconstructions (B, 3, H, W) in [-1, 1], and the codes.

        Both are compared as 8-bit images, which is what files hold.
        """
        from torchmetrics.functional.image import structural_similarity_index_measure

        x, y = (to_float(to_uint8(side)).cpu() for side in (originals, images))
        error_B = (x - y).double().square().mean((1, 2, 3))
        self.sums["count"] += len(x)
        self.sums["error"] += float(error_B.sum())
        self.sums["psnr"] += float((10 * (4 / error_B.clamp(min=1e-10)).log10()).sum())
        similar_B = structural_similarity_index_measure(y, x, data_range=2.0, reduction="none")
        assert isinstance(similar_B, Tensor)
        self.sums["ssim"] += float(similar_B.double().sum())
        if self.lpips is not None:
            device = next(self.lpips.parameters()).device
            for a, b in zip(x.to(device).split(16), y.to(device).split(16)):
                self.sums["lpips"] += float(self.lpips(a, b).mean()) * len(a)
        if self.spec.kind == "discrete":
            columns = codes[..., None] if codes.ndim == 2 else codes
            for g in range(columns.shape[-1]):
                self.used.update((g, i) for i in columns[..., g].unique().tolist())

    def numbers(self, metrics: Collection[str], skipped: dict[str, str]) -> dict[str, float]:
        """Return the means over all images of all ranks.

        `psnr_db` is the mean of the images' own ratios, as most papers print; `psnr_db_pooled`,
        never larger, is that of the mean error over all pixels.
        """
        parts = gather([self.sums])
        sums = {key: sum(part[key] for part in parts) for key in self.sums}
        count = sums["count"]
        if not count:
            raise UserError("There is no image to reconstruct.")
        numbers: dict[str, float] = {}
        if "psnr" in metrics:
            numbers["psnr_db"] = sums["psnr"] / count
            numbers["psnr_db_pooled"] = 10 * math.log10(4 / max(sums["error"] / count, 1e-10))
        if "ssim" in metrics:
            numbers["ssim"] = sums["ssim"] / count
        if "lpips" in metrics:
            if "lpips" in sums:
                numbers["lpips"] = sums["lpips"] / count
            else:
                skipped["lpips"] = "it needs VGG16's weights: lpips_path=FILE"
        if "code_usage" in metrics:
            if self.spec.kind == "discrete":
                used = set(gather(sorted(self.used)))
                sizes = self.spec.segments[0].vocab_sizes
                shares = [sum(h == g for h, _ in used) / size for g, size in enumerate(sizes)]
                numbers["code_usage"] = sum(shares) / len(shares)
            else:
                skipped["code_usage"] = f"{self.spec.kind} codes have no table to be used"
        return numbers
