"""Codes that are easy to model: a small causal predictor trained along with the tokenizer.

Reconstruction alone lets an encoder spread information over the grid in ways that a generator can
hardly predict. Penalising the error of a weak predictor of each code from those above and to the
left trades a little reconstruction for much more predictable codes ("causally regularised
tokenisation", arXiv 2412.16326; here with masked convolutions instead of a transformer).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CausalConv2d(nn.Conv2d):
    """A convolution that sees only what comes before in raster order.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: odd side of the kernel.
        itself: whether the centre is visible too (false in the first layer).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, itself: bool) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        visible = torch.ones(kernel, kernel)
        visible[kernel // 2, kernel // 2 + int(itself) :] = 0
        visible[kernel // 2 + 1 :] = 0
        self.visible: Tensor
        self.register_buffer("visible", visible, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, h, w) to (B, out, h, w)."""
        return F.conv2d(x, self.weight * self.visible, self.bias, padding=self.padding)


class CausalPrior(nn.Module):
    """Predicts each quantised vector of a grid from the ones before it.

    Args:
        dim: width C of the vectors.
        channels: width of the hidden layers.
        kernel: side of the first, widest convolution.
    """

    def __init__(self, dim: int, *, channels: int = 48, kernel: int = 5) -> None:
        super().__init__()
        self.net = nn.Sequential(
            CausalConv2d(dim, channels, kernel, itself=False),
            nn.SiLU(),
            CausalConv2d(channels, channels, 3, itself=True),
            nn.SiLU(),
            nn.Conv2d(channels, dim, 1),
        )

    def forward(self, z_BhwC: Tensor) -> Tensor:
        """Return the mean squared error of the prediction, a scalar.

        Gradients reach the predictor and, straight through the quantiser, the encoder.
        """
        z = z_BhwC.permute(0, 3, 1, 2)  # B C h w
        return F.mse_loss(self.net(z).float(), z.float())
