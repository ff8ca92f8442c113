"""What keeps a discriminator from winning at once: R1 on its slope, LeCam on its logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.layers.collective import all_sum, world_size


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Return R1 (arXiv 1801.04406): half the squared gradient of real logits, mean over images.

    Args:
        logits: the discriminator's on `images`.
        images: real images (B, 3, H, W) that require gradients.
    """
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * slope.square().flatten(1).sum(1).mean()


class LeCam(nn.Module):
    """Keeps logits near the running means of the opposite kind (arXiv 2104.03310).

    relu(real - mean of fake)^2 + relu(mean of real - fake)^2, each a mean. The running means are
    part of the checkpoint, and means over all processes.

    Args:
        decay: decay of the running means, which start at 0.
        of_means: compare the batch's mean logits (TiTok), else every logit, squared one by one
            (Open-MAGVIT2, IBQ, WeTok).
        update_first: take the batch into the means before comparing (the same three).
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
