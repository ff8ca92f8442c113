"""The terms of a tokenizer's training: small, named, unweighted; weights are the recipe's.

B batch; logits of a discriminator are (B, 1, h, w), one a patch, or (B, 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError, suggest
from argen.layers.collective import all_sum, world_size

RECONSTRUCTION = ("l1", "l2")
DISCRIMINATOR_LOSSES = ("hinge", "vanilla", "swapped_bce")
GENERATOR_LOSSES = ("hinge", "non_saturating", "non_saturating_image", "swapped_bce")


def reconstruction_loss(images: Tensor, target: Tensor, kind: str) -> Tensor:
    """Return the mean absolute (`l1`) or squared (`l2`) error of images (B, 3, H, W)."""
    if kind not in RECONSTRUCTION:
        raise UserError(f"Unknown reconstruction loss {kind!r}; use l1 or l2.")
    return F.l1_loss(images, target) if kind == "l1" else F.mse_loss(images, target)


def discriminator_loss(real: Tensor, fake: Tensor, kind: str = "hinge") -> Tensor:
    """Return half the loss on real plus half the loss on fake logits.

    Args:
        real: logits of images.
        fake: logits of reconstructions.
        kind: `hinge` (arXiv 1705.02894); `vanilla`, the binary cross entropy of arXiv 1406.2661;
            `swapped_bce`, LlamaGen's `non-saturating` option, in which logits and targets of the
            cross entropy have changed places, so that reconstructions give no gradient: only to
            repeat its runs.
    """
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    if kind == "vanilla":
        return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
    if kind == "swapped_bce":
        return 0.5 * (_swapped_bce(real, 1.0) + _swapped_bce(fake, 0.0))
    raise UserError(
        f"Unknown discriminator loss {kind!r}; use one of {', '.join(DISCRIMINATOR_LOSSES)}."
        f"{suggest(kind, DISCRIMINATOR_LOSSES)}"
    )


def generator_loss(fake: Tensor, kind: str = "hinge") -> Tensor:
    """Return what the tokenizer minimises to make reconstructions look real.

    Args:
        fake: logits of reconstructions.
        kind: `hinge`, minus the mean logit; `non_saturating`, softplus(-logit);
            `non_saturating_image`, the same of each image's mean logit (Open-MAGVIT2);
            `swapped_bce`, LlamaGen's option, see `discriminator_loss`.
    """
    if kind == "hinge":
        return -fake.mean()
    if kind == "non_saturating":
        return F.softplus(-fake).mean()
    if kind == "non_saturating_image":
        return F.softplus(-fake.flatten(1).mean(1)).mean()
    if kind == "swapped_bce":
        return _swapped_bce(fake, 1.0)
    raise UserError(
        f"Unknown generator loss {kind!r}; use one of {', '.join(GENERATOR_LOSSES)}."
        f"{suggest(kind, GENERATOR_LOSSES)}"
    )


def _swapped_bce(logits: Tensor, label: float) -> Tensor:
    """Return the cross entropy of the constant logit `label` against the target `logits`."""
    return math.log1p(math.exp(label)) - label * logits.mean()


def adaptive_weight(
    reconstruction: Tensor,
    adversarial: Tensor,
    last_layer: Tensor,
    *,
    low: float = 0.0,
    high: float = 1e4,
    eps: float = 1e-4,
) -> Tensor:
    """Return |d reconstruction| / |d adversarial| at the decoder's last layer, detached.

    It makes the adversarial term pull as hard as the reconstruction (VQGAN, arXiv 2012.09841).

    Args:
        reconstruction: the weighted pixel and perceptual terms, a scalar.
        adversarial: the unweighted generator loss, a scalar.
        last_layer: weight of the last layer, part of the graph of both.
        low: least weight.
        high: largest weight.
        eps: added to the denominator.
    """
    (pixel,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (judged,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (pixel.norm() / (judged.norm() + eps)).clamp(low, high).detach()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Return R1 (arXiv 1801.04406): half the squared gradient of real logits, mean over images.

    Args:
        logits: the discriminator's on `images`.
        images: real images (B, 3, H, W) that require gradients.
    """
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * slope.square().flatten(1).sum(1).mean()


class LeCam(nn.Module):
    """Keeps logits near the running means of the opposite side (arXiv 2104.03310).

    The means are part of the checkpoint, and means over all processes.

    Args:
        decay: decay of the running means.
        of_means: compare the batch's mean logits (TiTok), else every logit (Open-MAGVIT2).
        update_first: take the batch into the means before comparing (Open-MAGVIT2).
    """

    def __init__(
        self, *, decay: float = 0.999, of_means: bool = True, update_first: bool = False
    ) -> None:
        super().__init__()
        self.decay, self.of_means, self.update_first = decay, of_means, update_first
        self.real: Tensor
        self.fake: Tensor
        self.register_buffer("real", torch.zeros(1))
        self.register_buffer("fake", torch.zeros(1))

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Take a batch's logits into the running means."""
        means = all_sum(torch.stack((real.float().mean(), fake.float().mean()))) / world_size()
        self.real.lerp_(means[:1], 1 - self.decay)
        self.fake.lerp_(means[1:], 1 - self.decay)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the regulariser of logits, a scalar; in training the means are updated."""
        if self.training and self.update_first:
            self.update(real, fake)
        # Copies: an update in place would spoil the backward pass.
        old_real, old_fake = self.real.clone(), self.fake.clone()
        if self.training and not self.update_first:
            self.update(real, fake)
        if self.of_means:
            real, fake = real.mean(), fake.mean()
        return F.relu(real - old_fake).square().mean() + F.relu(old_real - fake).square().mean()
