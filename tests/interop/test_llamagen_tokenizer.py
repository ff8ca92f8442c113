"""LlamaGen's VQ tokenizer against the same network written out from its weights alone.

The published run of this tokenizer is too large to keep here; this is the plain arithmetic of
arXiv 2406.06525 on a state dict with the published key names.
"""

import pytest
import torch
from torch.nn import functional as F

from argen.interop.base import Imported
from argen.interop.llamagen import llamagen

WIDTH, LATENT, CODES, DIM = 32, 32, 48, 8
MULTIPLIERS = (1, 2)
CONFIG = {
    "codebook_size": CODES,
    "codebook_embed_dim": DIM,
    "codebook_l2_norm": True,
    "commit_loss_beta": 0.25,
    "entropy_loss_ratio": 0.1,
    "encoder_ch_mult": list(MULTIPLIERS),
    "decoder_ch_mult": list(MULTIPLIERS),
    "z_channels": LATENT,
    "dropout_p": 0.0,
    "encoder_kwargs": {"ch": WIDTH, "num_res_blocks": 1},
    "decoder_kwargs": {"ch": WIDTH, "num_res_blocks": 1},
}


class Weights(dict):
    """A state dict that is filled with seeded numbers as names are first asked for."""

    def __init__(self):
        super().__init__()
        self.draws = torch.Generator().manual_seed(0)

    def conv(self, name, out, into, kernel):
        scale = (into * kernel * kernel) ** -0.5
        shape = (out, into, kernel, kernel)
        self[f"{name}.weight"] = scale * torch.randn(shape, generator=self.draws)
        self[f"{name}.bias"] = 0.1 * torch.randn(out, generator=self.draws)

    def norm(self, name, width):
        self[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=self.draws)
        self[f"{name}.bias"] = 0.1 * torch.randn(width, generator=self.draws)

    def residual(self, name, into, out):
        self.norm(f"{name}.norm1", into)
        self.conv(f"{name}.conv1", out, into, 3)
        self.norm(f"{name}.norm2", out)
        self.conv(f"{name}.conv2", out, out, 3)
        if into != out:
            self.conv(f"{name}.nin_shortcut", out, into, 1)

    def attention(self, name, width):
        self.norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.{part}", width, width, 1)


@pytest.fixture(scope="module")
def weights():
    """Return a state dict under LlamaGen's keys: levels 32 and 64 wide, attention at the lowest."""
    w = Weights()
    w.conv("encoder.conv_in", 32, 3, 3)
    w.residual("encoder.conv_blocks.0.res.0", 32, 32)
    w.conv("encoder.conv_blocks.0.downsample.conv", 32, 32, 3)
    w.residual("encoder.conv_blocks.1.res.0", 32, 64)
    w.attention("encoder.conv_blocks.1.attn.0", 64)
    w.conv("decoder.conv_in", 64, LATENT, 3)
    w.residual("decoder.conv_blocks.0.res.0", 64, 64)
    w.residual("decoder.conv_blocks.0.res.1", 64, 64)
    w.attention("decoder.conv_blocks.0.attn.0", 64)
    w.attention("decoder.conv_blocks.0.attn.1", 64)
    w.conv("decoder.conv_blocks.0.upsample.conv", 64, 64, 3)
    w.residual("decoder.conv_blocks.1.res.0", 64, 32)
    w.residual("decoder.conv_blocks.1.res.1", 32, 32)
    for half, last, out in (("encoder", 64, LATENT), ("decoder", 32, 3)):
        w.residual(f"{half}.mid.0", 64, 64)
        w.attention(f"{half}.mid.1", 64)
        w.residual(f"{half}.mid.2", 64, 64)
        w.norm(f"{half}.norm_out", last)
        w.conv(f"{half}.conv_out", out, last, 3)
    w.conv("quant_conv", DIM, LATENT, 1)
    w.conv("post_quant_conv", LATENT, DIM, 1)
    w["quantize.embedding.weight"] = 3.0 * torch.randn(CODES, DIM, generator=w.draws)
    w["quantize.codebook_used"] = torch.zeros(65536)
    return dict(w)


class ByHand:
    """The network as a sequence of formulas."""

    def __init__(self, weights):
        self.w = weights

    def conv(self, name, x, **options):
        return F.conv2d(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], **options)

    def norm(self, name, x):
        B, C, h, w = x.shape
        grouped = x.reshape(B, 32, -1)
        mean = grouped.mean(-1, keepdim=True)
        variance = (grouped - mean).square().mean(-1, keepdim=True)
        x = ((grouped - mean) / (variance + 1e-6).sqrt()).reshape(B, C, h, w)
        return x * self.w[f"{name}.weight"][:, None, None] + self.w[f"{name}.bias"][:, None, None]

    def activated(self, name, x):
        x = self.norm(name, x)
        return x * torch.sigmoid(x)

    def residual(self, name, x):
        y = self.conv(f"{name}.conv1", self.activated(f"{name}.norm1", x), padding=1)
        y = self.conv(f"{name}.conv2", self.activated(f"{name}.norm2", y), padding=1)
        if f"{name}.nin_shortcut.weight" in self.w:
            x = self.conv(f"{name}.nin_shortcut", x)
        return x + y

    def attention(self, name, x):
        y = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", y).flatten(2) for part in "qkv")  # B C hw
        weights = torch.einsum("bci,bcj->bij", q, k) / x.shape[1] ** 0.5
        mixed = torch.einsum("bij,bcj->bci", weights.exp() / weights.exp().sum(-1, True), v)
        return x + self.conv(f"{name}.proj_out", mixed.reshape(x.shape))

    def mid(self, half, x):
        x = self.residual(f"{half}.mid.0", x)
        return self.residual(f"{half}.mid.2", self.attention(f"{half}.mid.1", x))

    def out(self, half, x):
        return self.conv(f"{half}.conv_out", self.activated(f"{half}.norm_out", x), padding=1)

    def latent(self, images):
        x = self.residual(
            "encoder.conv_blocks.0.res.0", self.conv("encoder.conv_in", images, padding=1)
        )
        B, C, h, w = x.shape
        padded = torch.zeros(B, C, h + 1, w + 1)
        padded[:, :, :h, :w] = x
        x = self.conv("encoder.conv_blocks.0.downsample.conv", padded, stride=2)
        x = self.residual("encoder.conv_blocks.1.res.0", x)
        x = self.attention("encoder.conv_blocks.1.attn.0", x)
        return self.conv("quant_conv", self.out("encoder", self.mid("encoder", x)))

    def quantize(self, z):
        """Return unit latents (N, C), ids (N,) and squared distances (N, K), pixel by pixel."""
        rows = self.w["quantize.embedding.weight"]
        rows = rows / rows.norm(dim=1, keepdim=True)
        unit = z.permute(0, 2, 3, 1).reshape(-1, DIM)
        unit = unit / unit.norm(dim=1, keepdim=True)
        distances = (unit[:, None] - rows[None]).square().sum(-1)
        return unit, distances.argmin(1), distances, rows

    def decode(self, z):
        x = self.conv("post_quant_conv", z)
        x = self.mid("decoder", self.conv("decoder.conv_in", x, padding=1))
        for block in range(2):
            x = self.residual(f"decoder.conv_blocks.0.res.{block}", x)
            x = self.attention(f"decoder.conv_blocks.0.attn.{block}", x)
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        x = self.conv("decoder.conv_blocks.0.upsample.conv", x, padding=1)
        for block in range(2):
            x = self.residual(f"decoder.conv_blocks.1.res.{block}", x)
        return self.out("decoder", x)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def tokenizer(weights):
    imported = Imported(
        llamagen.tokenizer_config(CONFIG, image_size=[12, 20]),
        llamagen.tokenizer_weights(weights),
        "the test",
    )
    return imported.build()


@torch.no_grad()
def test_encode_and_decode(tokenizer, weights, images):
    by_hand = ByHand(weights)
    z = by_hand.latent(images)
    _, ids, distances, rows = by_hand.quantize(z)
    best = distances.topk(2, dim=1, largest=False).values
    assert (best[:, 1] - best[:, 0]).min() > 1e-4  # rounding cannot change a code
    codes = tokenizer.encode(images)
    assert tokenizer.spec.grid == (6, 10)
    assert torch.equal(codes, ids.view(2, 60))
    assert codes.unique().numel() > 5
    expected = by_hand.decode(rows[ids].view(2, 6, 10, DIM).permute(0, 3, 1, 2))
    torch.testing.assert_close(tokenizer.decode(codes), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokenizer(images).images, expected, rtol=1e-4, atol=1e-4)


def test_losses(tokenizer, weights, images):
    unit, ids, distances, rows = ByHand(weights).quantize(ByHand(weights).latent(images))
    probabilities = torch.softmax(-distances / 0.01, dim=1)
    each = -(probabilities * (probabilities + 1e-30).log()).sum(1).mean()
    together = probabilities.mean(0)
    entropy = each + (together * (together + 1e-5).log()).sum()
    gap = (unit - rows[ids]).square().mean()
    tokenizer.train()
    losses = tokenizer(images).losses
    tokenizer.eval()
    torch.testing.assert_close(losses["codebook"], gap, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["commitment"], gap, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["entropy"], entropy, rtol=1e-3, atol=1e-3)
