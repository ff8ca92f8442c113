"""The tokenizer contract: images to codes and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import UserError, suggest
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

    A subclass writes `_encode`, `_decode`, `forward` and `spec`. The keyword arguments of the first
    two are the options that `encode` and `decode` take; a caller who gives another one is told
    so here, by name. Names with a meaning of their own, for those that have them:

    - `noise`: a `Noise`, random numbers of a stochastic encoder or decoder;
    - `length`: decode only this many leading codes;
    - `text`: token features (B, T, F) for text-aware networks;
    - `steps`, `guidance`: of an iterative decoder;
    - `scales`: another pyramid than the tokenizer's own.

    An option that is None counts as not given, so a caller may pass on what it was not told.

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

    @property
    def encode_options(self) -> tuple[str, ...]:
        """Names of the options that `encode` takes."""
        return keywords(self._encode)

    @property
    def decode_options(self) -> tuple[str, ...]:
        """Names of the options that `decode` takes."""
        return keywords(self._decode)

    def encode(self, images: Tensor, **options: Any) -> Tensor:
        """Return codes: long (B, L) or (B, L, G), or float (B, L, C) of unit scale.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            options: see `encode_options`.

        Raises:
            UserError: if the images cannot be encoded, or an option is not one of this tokenizer's.
        """
        given = self._given("encode", self.encode_options, options)
        self.check_images(images)
        return self._encode(images, **given)

    def decode(self, codes: Tensor, **options: Any) -> Tensor:
        """Return images (B, 3, H, W), not clamped.

        Args:
            codes: as `encode` gives them.
            options: see `decode_options`.

        Raises:
            UserError: if the codes do not fit, or an option is not one of this tokenizer's.
        """
        given = self._given("decode", self.decode_options, options)
        self.check_codes(codes, **given)
        return self._decode(codes, **given)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Return images (B, 3, H, W), not clamped, of vectors as they leave the quantiser.

        For tokenizers that have such vectors: a mean over codes, which is no code, decodes too.
        Options that concern the decoder network are keyword arguments here as well.

        Args:
            z: vectors, laid out as the tokenizer's own says.

        Raises:
            UserError: if this tokenizer decodes codes alone.
        """
        raise UserError(f"{type(self).__name__} decodes codes alone, no vectors between them.")

    @abstractmethod
    def _encode(self, images: Tensor) -> Tensor:
        """Return the codes of images that were checked; options are keyword arguments here."""

    @abstractmethod
    def _decode(self, codes: Tensor) -> Tensor:
        """Return the images of codes that were checked; options are keyword arguments here."""

    def _given(
        self, call: str, known: tuple[str, ...], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the options that are set; raise `UserError` for one that is not known."""
        given = {name: value for name, value in options.items() if value is not None}
        for name in given:
            if name not in known:
                takes = ", ".join(known) or "no options"
                raise UserError(
                    f"{type(self).__name__} cannot {call} with {name}=; it takes {takes}: leave "
                    f"{name} out.{suggest(name, known)}"
                )
        return given

    @property
    def has_moments(self) -> bool:
        """Whether codes have a posterior that `moments` gives: a Gaussian bottleneck."""
        return False

    def moments(self, images: Tensor) -> Tensor:
        """Return means, then standard deviations of the codes' posterior, float (B, L, 2C)."""
        raise UserError(f"The codes of {type(self).__name__} have no posterior.")

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

    def check_codes(self, codes: Tensor, **options: Any) -> None:
        """Raise `UserError` unless `codes` can be decoded with these options of `decode`."""
        self.spec.check(codes)


def keywords(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a function's keyword-only arguments."""
    arguments = signature(function).parameters.values()
    return tuple(a.name for a in arguments if a.kind is Parameter.KEYWORD_ONLY)
