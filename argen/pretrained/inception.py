"""torch-fidelity's port of the TensorFlow Inception of 2015, which FID is defined on.

Letters: B batch, H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from argen.errors import CheckpointError
from argen.images.pixels import to_uint8
from argen.pretrained.assets import asset
from argen.pretrained.base import FeatureExtractor, full_float32
from argen.runtime.files import sha256_of

# ADM's sFID: the first seven channels of `mixed_6/conv` of the TensorFlow graph, 17 x 17 each,
# which is the rectified 1x1 branch of the block that torch calls Mixed_6d.
SPATIAL_CHANNELS, SPATIAL_SIDE = 7, 17


class InceptionFeatures(FeatureExtractor):
    """Pooled features, logits without their bias, and the spatial features of sFID.

    Images are rounded to 8 bits; the network resizes them to 299 px as TensorFlow 1 did.

    Args:
        weights_path: the published file; looked for in the asset folder when None.
        sha256: what it must hash to, if another file than the published one is wanted.

    Raises:
        UserError: no such file; the message says how to get it.
        CheckpointError: another file.
    """

    name = "inception_v3_compat"
    dim = 2048
    logits_unbiased_dim = 1008
    spatial_dim = SPATIAL_CHANNELS * SPATIAL_SIDE**2

    def __init__(
        self, *, weights_path: Path | str | None = None, sha256: str | None = None
    ) -> None:
        super().__init__()
        published = asset("inception")
        if weights_path:
            # A file given by name may hold other weights: results then say so.
            path = Path(weights_path)
            if not path.is_file():
                published.find(path)
        else:
            path = published.find()
        self.sha256 = sha256_of(path)
        if sha256 is not None and self.sha256 != sha256:
            raise CheckpointError(
                f"{path} has sha256 {self.sha256}, but {sha256} was asked for: "
                f"fetch it again from {published.url}."
            )
        # torch-fidelity unpickles the file without restriction: refuse all but tensors first.
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{path} is not a plain file of tensors: fetch it again from {published.url}."
            ) from error
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=str(path),
            )
        except (RuntimeError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"{path} does not hold torch-fidelity's Inception weights: "
                f"fetch them from {published.url}."
            ) from error
        self._map: Tensor | None = None
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep_map)

    def protocol(self) -> dict[str, Any]:
        """Return the facts that fix the features."""
        return {
            "name": self.name,
            "dim": self.dim,
            "sha256": self.sha256,
            "resize": "299x299 bilinear as TensorFlow 1",
            "input": "uint8",
        }

    @torch.inference_mode()
    def forward(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        """Return `pool` (B, 2048), `logits_unbiased` (B, 1008) and `spatial` (B, 2023)."""
        pixels = to_uint8(images_B3HW).to(self.device)  # (B, 3, H, W)
        with full_float32(pixels.device):
            pool, logits = self.network(pixels)
        assert self._map is not None
        # Channels last, as TensorFlow lays it out: stored statistics count on that order.
        spatial = self._map[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        self._map = None
        return {"pool": pool, "logits_unbiased": logits, "spatial": spatial}

    def _keep_map(self, module: Any, inputs: Any, output: Tensor) -> None:
        self._map = output
