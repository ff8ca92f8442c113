"""Latents aligned with the features of a frozen vision model (VA-VAE, arXiv 2501.01423).

Wide latents reconstruct well but are hard to generate; pulling them towards features of a network
that understands images makes them easier to model at little cost in reconstruction.

Letters: B batch, C latent channels, F feature channels, h w latent grid, N = h w.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import CheckpointError, UserError
from argen.objectives.balance import adaptive_weight
from argen.pretrained.efficientnet import PIXEL_MEAN, PIXEL_STD, load_efficientnet_lite0
from argen.pretrained.tapped import Frozen, TappedNetwork

TAP, TAP_WIDTH, TAP_FACTOR = "blocks.10", 112, 16  # the last block before the fifth halving

log = logging.getLogger(__name__)


class FrozenFeatures(Frozen):
    """Feature maps of any frozen network, for images (B, 3, H, W) in [-1, 1].

    Args:
        network: maps images to a map (B, F, h, w), to tokens (B, N, F) of a square grid behind
            any number of class and register tokens, to a list whose last entry is one of them, or
            to what models of the transformers library give.
        dim: width F.
        size: images are resized to this side first, bilinearly; 0 leaves them alone.
        leading: tokens before those of the grid, which are dropped.
    """

    def __init__(self, network: nn.Module, *, dim: int, size: int = 0, leading: int = 1) -> None:
        super().__init__()
        self.network, self.dim, self.size, self.leading = network, dim, size, leading
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, F, h, w)."""
        if self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear")
        found = self.network(images)
        if isinstance(found, list | tuple):
            found = found[-1]
        shuffled = getattr(found, "ids_restore", None)  # masked autoencoders mix the tokens up
        found = getattr(found, "last_hidden_state", found)
        if found.ndim == 3:
            tokens = found[:, self.leading :]
            if shuffled is not None:
                tokens = tokens.gather(1, shuffled[..., None].expand_as(tokens))
            side = round(tokens.shape[1] ** 0.5)
            if side * side != tokens.shape[1]:
                raise UserError(
                    f"{tokens.shape[1]} feature tokens are no square grid; set leading to the "
                    "number of class and register tokens of this network."
                )
            found = tokens.transpose(1, 2).unflatten(2, (side, side))
        return found


class AlignmentLoss(nn.Module):
    """Marginal cosine and marginal distance-matrix loss between latents and frozen features.

    The cosine term compares each latent with the feature at its place, after a linear projection
    to a common width; the distance-matrix term compares how alike any two places of an image are
    in both. Differences below the margins cost nothing.

    Args:
        features: maps images in [-1, 1] to (B, F, h, w).
        latent_dim: latent channels C.
        project: `latent` maps latents to F channels without a bias; `features` maps features to
            C channels with one.
        cosine_margin: m in relu(1 - m - cos).
        distance_margin: m in relu(|difference of similarities| - m).
        cosine_weight: weight of the cosine term.
        distance_weight: weight of the distance-matrix term.
        max_scale: largest scale that balances the loss against the reconstruction; published as 1e8
            beside a reconstruction loss that is summed over an image's numbers.
    """

    def __init__(
        self,
        features: FrozenFeatures,
        *,
        latent_dim: int,
        project: str = "latent",
        cosine_margin: float = 0.0,
        distance_margin: float = 0.0,
        cosine_weight: float = 1.0,
        distance_weight: float = 1.0,
        max_scale: float = 1e8,
    ) -> None:
        super().__init__()
        if project not in ("latent", "features"):
            raise UserError(f"Unknown projection {project!r}; use latent or features.")
        self.features, self.project = features, project
        into_features, feature_dim = project == "latent", features.dim
        self.projection = nn.Conv2d(
            latent_dim if into_features else feature_dim,
            feature_dim if into_features else latent_dim,
            1,
            bias=not into_features,
        )
        self.cosine_margin, self.distance_margin = cosine_margin, distance_margin
        self.cosine_weight, self.distance_weight = cosine_weight, distance_weight
        self.max_scale = max_scale

    def terms(self, images: Tensor, latents_BhwC: Tensor) -> dict[str, Tensor]:
        """Return the unweighted terms `alignment_cosine` and `alignment_distance`.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            latents_BhwC: sampled latents, with gradient.
        """
        with torch.autocast(images.device.type, enabled=False):
            z = latents_BhwC.float().permute(0, 3, 1, 2)  # B C h w
            f = self.features(images.float()).float()  # B F h' w'
            if f.shape[2:] != z.shape[2:]:
                f = F.interpolate(f, size=z.shape[2:], mode="bilinear")
            if self.project == "latent":
                z = self.projection(z)
            else:
                f = self.projection(f)
            z = F.normalize(z.flatten(2), dim=1)  # B F N
            f = F.normalize(f.flatten(2), dim=1)
            cosine = F.relu(1 - self.cosine_margin - (z * f).sum(1)).mean()
            # Similarities are compared within an image.
            gap = (z.transpose(1, 2) @ z - f.transpose(1, 2) @ f).abs()  # B N N
            distance = F.relu(gap - self.distance_margin).mean()
            return {"alignment_cosine": cosine, "alignment_distance": distance}

    def forward(self, images: Tensor, latents_BhwC: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the terms, a scalar, and the terms."""
        terms = self.terms(images, latents_BhwC)
        total = self.cosine_weight * terms["alignment_cosine"]
        return total + self.distance_weight * terms["alignment_distance"], terms


def alignment_scale(
    reconstruction: Tensor, alignment: Tensor, encoder_layer: Tensor, *, high: float = 1e8
) -> Tensor:
    """Return |d reconstruction| / |d alignment| at the encoder's last layer, detached.

    It lets the alignment pull as hard on the encoder as the reconstruction does, before its own
    weight (0.5, then 0.1 in the published recipe).

    Args:
        reconstruction: the weighted pixel and perceptual terms, a scalar.
        alignment: from `AlignmentLoss`.
        encoder_layer: `KLTokenizer.encoder_last_layer()`, part of the graph of both.
        high: largest scale.
    """
    return adaptive_weight(reconstruction, alignment, encoder_layer, high=high)


def foundation_features(
    path: str | Path | None = None, *, size: int = 224, leading: int = 1
) -> FrozenFeatures:
    """Return feature maps of a vision transformer, or without one those of EfficientNet-Lite0.

    The second needs no download but knows less of images; published results were reached with
    DINOv2 ViT-L/14 at 224 px. It says so in the log.

    Args:
        path: directory of a model as the transformers library saves it, e.g. DINOv2 or MAE.
        size: images are resized to this side; it decides how fine the feature map is.
        leading: class and register tokens before those of the image's grid.

    Raises:
        CheckpointError: if the directory is missing or holds no such model.
        UserError: if the transformers library is not installed.
    """
    if path is None:
        log.warning(
            "No vision model was given, so latents are aligned with EfficientNet-Lite0. For "
            "DINOv2 save facebook/dinov2-large to a directory and give its place (path=DIR)."
        )
        network, _ = load_efficientnet_lite0()
        mean, std = PIXEL_MEAN / 255, PIXEL_STD / 255
        tapped = TappedNetwork(network, taps=(TAP,), mean=(mean,) * 3, std=(std,) * 3)
        return FrozenFeatures(tapped, dim=TAP_WIDTH, size=size)
    if find_spec("transformers") is None:
        raise UserError("Reading a vision model needs transformers: pip install 'argen[text]'.")
    if not (Path(path) / "config.json").is_file():
        raise CheckpointError(
            f"{path} is no model directory (no config.json); save one there with save_pretrained."
        )
    from transformers import AutoModel

    try:
        # A masked autoencoder would hide most of the image from itself.
        hide = {"mask_ratio": 0.0} if "mae" in (Path(path) / "config.json").read_text() else {}
        model = AutoModel.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False, **hide
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a vision model ({error}).") from error
    return FrozenFeatures(model, dim=int(model.config.hidden_size), size=size, leading=leading)
