"""What LlamaGen's tokenizers are trained on (FoundationVision/LlamaGen, MIT), written anew.

Where argen differs: these losses run in the step's autocast, argen's in float32; the distance's
heads drop half of their inputs at random, because the whole module is put into training mode; and
the tokenizer's backward pass also fills the gradients of the discriminator, which are thrown away.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.pretrained.vgg_lpips import LPIPS_SCALE, LPIPS_SHIFT, VGG_WIDTHS
from released.vq_quantizer import CodebookLosses

Terms = dict[str, Tensor]


class Losses(nn.Module):
    """Squared error, LPIPS and a patch discriminator with hinge losses, from its first step on.

    Args:
        channels: of the discriminator's first layer.
        layers: its strided layers.
        weight: of the adversarial terms of both sides.
        adaptive: scale the tokenizer's by gradients at the last layer; an option that the
            published script leaves out.
    """

    def __init__(self, *, channels: int, layers: int, weight: float, adaptive: bool) -> None:
        super().__init__()
        self.weight, self.adaptive = weight, adaptive
        self.discriminator = Discriminator(channels, layers)
        self.perceptual = Distance()

    def tokenizer_loss(
        self,
        images: Tensor,
        reconstruction: Tensor,
        codebook: CodebookLosses,
        last_layer: Tensor,
    ) -> tuple[Tensor, Terms]:
        """Return the tokenizer's total and its terms, those of the codebook weighted."""
        pixel = F.mse_loss(images.contiguous(), reconstruction.contiguous())
        distance = torch.mean(self.perceptual(images.contiguous(), reconstruction.contiguous()))
        adversarial = -torch.mean(self.discriminator(reconstruction.contiguous()))
        scale: Tensor | float = 1.0
        if self.adaptive:
            scale = gradient_ratio(pixel + distance, adversarial, last_layer)
        total = pixel + distance + scale * self.weight * adversarial
        total = total + codebook.codebook + codebook.commitment + codebook.entropy
        terms = {"l2": pixel, "perceptual": distance, "adversarial": adversarial}
        terms |= {"codebook": codebook.codebook, "commitment": codebook.commitment}
        return total, terms

    def discriminator_loss(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, Terms]:
        """Return the discriminator's total and its terms."""
        real = self.discriminator(images.contiguous().detach())
        fake = self.discriminator(reconstruction.contiguous().detach())
        loss = 0.5 * (torch.mean(F.relu(1.0 - real)) + torch.mean(F.relu(1.0 + fake)))
        return self.weight * loss, {"discriminator": loss}


def gradient_ratio(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Return the norm of the first loss's gradient at a weight over that of the second's."""
    (pull,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (push,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return torch.clamp(torch.norm(pull) / (torch.norm(push) + 1e-4), 0.0, 1e4).detach()


class Discriminator(nn.Module):
    """PatchGAN: strided 4x4 convolutions, batch norms, leaky rectifiers in place."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        parts: list[nn.Module] = [
            nn.Conv2d(3, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        width = channels
        for n in range(1, layers + 1):
            wider, stride = channels * min(2**n, 8), 2 if n < layers else 1
            parts += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(wider),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            width = wider
        self.main = nn.Sequential(*parts, nn.Conv2d(width, 1, 4, padding=1))
        for part in self.main:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0.0, 0.02)
            elif isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.weight, 1.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to logits (B, 1, h, w)."""
        return self.main(images)


class Distance(nn.Module):
    """LPIPS over VGG16, frozen, with random weights: He's, so that no map dies out."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("shift", LPIPS_SHIFT), ("scale", LPIPS_SCALE)):
            self.register_buffer(name, torch.tensor(values)[None, :, None, None])
        width, slices = 3, []
        for i, widths in enumerate(VGG_WIDTHS):
            layers: list[nn.Module] = [nn.MaxPool2d(2, 2)] if i else []
            for wider in widths:
                layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU(inplace=True)]
                nn.init.kaiming_normal_(layers[-2].weight)
                width = wider
            slices.append(nn.Sequential(*layers))
        self.slices = nn.ModuleList(slices)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Dropout(), nn.Conv2d(widths[-1], 1, 1, bias=False))
            for widths in VGG_WIDTHS
        )
        self.requires_grad_(False)

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the distances (B, 1, 1, 1) of two batches (B, 3, H, W)."""
        pair = ((part - self.shift) / self.scale for part in (images, reconstruction))
        a, b = (self.maps(part) for part in pair)
        distances = [
            head((unit(x) - unit(y)) ** 2).mean([2, 3], keepdim=True)
            for head, x, y in zip(self.heads, a, b)
        ]
        total = distances[0]
        for distance in distances[1:]:
            total += distance
        return total

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the last map of each of five scales."""
        found = []
        for part in self.slices:
            images = part(images)
            found.append(images)
        return found


def unit(x: Tensor) -> Tensor:
    """Return x (B, C, h, w) divided by its length over the channels."""
    return x / (torch.sqrt(torch.sum(x**2, dim=1, keepdim=True)) + 1e-10)
