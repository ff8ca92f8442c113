"""The tokenizer contract: images to codes and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from argen.errors import UserError
from argen.layers.noise import Noise
from argen.spec import CodeSpec

RANGE_TOLERANCE = 1e-2


@dataclass
class TokenizerOutput:
    """What a training pass gives.

    Attributes:
        images: reconstruction (B, 3, H, W), not clamped.
        losses: named scalars, unweighted, beyond the reconstruction itself.
        ids: the codes, ids or bits, for usage statistics; None for continuous codes.
        latents: what the encoder gave, before quantisation, where a loss wants it.
        metrics: named scalars to log, detached.
    """

    images: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    ids: Tensor | None = None
    latents: Tensor | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Tokenizer(nn.Module, ABC):
    """Maps images (B, 3, H, W) in [-1, 1] to codes, and codes to images.

    Attributes:
        image_size: (H, W) that `spec` describes.
        factor: H and W must be divisible by it.
        spec: the codes of one image.
        spatial: whether codes have places in the image: a grid, or a pyramid of them.
        frozen_parts: parts that training leaves alone, and which must therefore be given weights.
    """

    image_size: tuple[int, int]
    factor: int
    spatial: bool = True
    frozen_parts: tuple[str, ...] = ()

    @property
    @abstractmethod
    def spec(self) -> CodeSpec:
        """The codes of one image of `image_size`."""

    @abstractmethod
    def encode(
        self, images: Tensor, *, noise: Noise | None = None, text: Tensor | None = None
    ) -> Tensor:
        """Return codes: long (B, L) or (B, L, G), or float (B, L, C) of unit scale.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            noise: draws of a stochastic encoder; its deterministic form when None.
            text: features for text-aware tokenizers.
        """

    @property
    def has_moments(self) -> bool:
        """Whether codes have a posterior that `moments` gives: a Gaussian bottleneck."""
        return False

    def moments(self, images: Tensor) -> Tensor:
        """Return means, then standard deviations of the codes' posterior, float (B, L, 2C)."""
        raise UserError(f"The codes of {type(self).__name__} have no posterior.")

    @abstractmethod
    def decode(
        self,
        codes: Tensor,
        *,
        length: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        noise: Noise | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """Return images (B, 3, H, W), not clamped.

        Args:
            codes: as `encode` gives them.
            length: decode only this many leading codes, where the tokenizer can.
            steps: steps of an iterative decoder.
            guidance: guidance weight of an iterative decoder.
            noise: draws of a stochastic decoder.
            text: features for text-aware tokenizers.
        """

    @abstractmethod
    def forward(self, images: Tensor, *, noise: Noise | None = None) -> TokenizerOutput:
        """Reconstruct images for training, with gradients."""

    @property
    def preview_lengths(self) -> list[int]:
        """How many leading codes can be decoded alone, rising; empty where only all of them can."""
        return []

    def last_layer(self) -> Tensor | None:
        """Return the weight that adaptive loss balancing differentiates; None if there is none."""
        return None

    def encoder_last_layer(self) -> Tensor | None:
        """Return the encoder's last weight, for balancing losses of the latents; None if none."""
        return None

    def check_images(self, images: Tensor) -> None:
        """Raise `UserError` unless `images` can be encoded."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"Images must be (B, 3, H, W), not {tuple(images.shape)}.")
        sides = tuple(images.shape[2:])
        if any(side % self.factor for side in sides):
            near = "x".join(str(max(1, round(side / self.factor)) * self.factor) for side in sides)
            raise UserError(
                f"Image size {sides[0]}x{sides[1]} is not divisible by {self.factor}, this "
                f"tokenizer's factor; the nearest size that is: {near}."
            )
        if not images.is_floating_point():
            raise UserError(f"Images must be floats in [-1, 1], not {images.dtype}.")
        if images.numel() and not torch.compiler.is_compiling():
            low, high = images.aminmax()
            if low < -1 - RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
                raise UserError(
                    f"Images must lie in [-1, 1], but reach from {low:.3g} to {high:.3g}; "
                    "rescale 0..255 images by x / 127.5 - 1."
                )

    def require_plain_decode(
        self, *, length: int | None, steps: int | None, guidance: float | None
    ) -> None:
        """Raise if an option was asked for that a one-pass, fixed-length decoder cannot follow."""
        given = {"length": length, "steps": steps, "guidance": guidance}
        for name, value in given.items():
            if value is not None:
                raise UserError(
                    f"{type(self).__name__} decodes all codes in one pass: leave out {name}={value}"
                )


def as_size(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Return (H, W) from one side or a pair."""
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
