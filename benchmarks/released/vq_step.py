"""The training step of LlamaGen's tokenizers (FoundationVision/LlamaGen, MIT), written anew.

As the published script makes it by default: Adam for both sides, gradients clipped at 1, no
adaptive weight, no average of the weights, and the two losses read by the host at the end. Its
scaler does nothing but under float16 and is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import UserError
from argen.objectives.discriminators import PatchDiscriminator
from released.vq import Network
from released.vq_losses import Losses

LR, BETAS, CLIP = 1e-4, (0.9, 0.95), 1.0


class ReleasedStep:
    """Both sides' steps on one batch.

    Args:
        network: the tokenizer.
        losses: holds the discriminator.
        images: the batch (B, 3, H, W).
        precision: bfloat16 for autocast.
    """

    def __init__(self, network: Network, losses: Losses, images: Tensor, precision: str) -> None:
        self.network, self.losses = network.train(), losses.train()
        self.images, self.precision = images, precision
        self.optimizer = torch.optim.Adam(network.parameters(), lr=LR, betas=BETAS)
        self.judge_optimizer = torch.optim.Adam(
            losses.discriminator.parameters(), lr=LR, betas=BETAS
        )

    @classmethod
    def like(cls, tokenizer: Any, objective: Any, images: Tensor, precision: str) -> ReleasedStep:
        """Return the step of networks as large as argen's, on the device of the batch.

        Raises:
            UserError: for an objective that the published script does not have.
        """
        judge, weights = objective.discriminator, objective.weights
        if not isinstance(judge, PatchDiscriminator):
            raise UserError(
                "The released step has a patch discriminator; use objective=llamagen_vq."
            )
        network = Network.like(
            tokenizer, commitment=weights["commitment"], entropy=weights["entropy"]
        )
        losses = Losses(
            channels=judge.main[0].out_channels,
            layers=judge.layers,
            weight=weights["adversarial"],
            adaptive=objective.adaptive,
        )
        return cls(network.to(images.device), losses.to(images.device), images, precision)

    def __call__(self) -> None:
        """Make the step."""
        self.optimizer.zero_grad()
        with self.autocast():
            reconstruction, codebook = self.network(self.images)
            loss, _ = self.losses.tokenizer_loss(
                self.images, reconstruction, codebook, self.network.last_layer()
            )
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.judge_optimizer.zero_grad()
        with self.autocast():
            judged, _ = self.losses.discriminator_loss(self.images, reconstruction)
        judged.backward()
        nn.utils.clip_grad_norm_(self.losses.discriminator.parameters(), CLIP)
        self.judge_optimizer.step()
        loss.item(), judged.item()  # added up for the log

    def autocast(self) -> torch.autocast:
        """Return the precision of a forward pass."""
        bfloat16 = self.precision == "bfloat16"
        return torch.autocast(self.images.device.type, torch.bfloat16, enabled=bfloat16)
