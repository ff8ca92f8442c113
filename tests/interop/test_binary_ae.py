"""The binary autoencoder against a walk over the reference's flat lists, in other layouts."""

import pytest
import torch
from torch.nn import functional as F

from argen.errors import CheckpointError
from argen.interop import binary_ae
from argen.interop.base import Imported

BASE = {
    "n_channels": 3,
    "nf": 32,
    "res_blocks": 1,
    "codebook_size": 10,
    "emb_dim": 32,
    "ch_mult": [1, 2],
    "img_size": 16,
    "attn_resolutions": [8],
    "norm_first": True,
    "gen_mul": 1.0,
    "use_tanh": False,
}
LAYOUTS = [
    {},
    {"norm_first": False, "use_tanh": True},
    {"ch_mult": [1, 1, 2], "attn_resolutions": [4, 16], "res_blocks": 2},
    {"gen_mul": 3.0, "attn_resolutions": []},
    {"ch_mult": [2], "emb_dim": 64},
]


def conv(name, out, into, size):
    scale = (into * size * size) ** -0.5
    return {
        f"{name}.weight": torch.randn(out, into, size, size) * scale,
        f"{name}.bias": torch.randn(out) * 0.1,
    }


def norm(name, width):
    return {
        f"{name}.weight": 1 + 0.1 * torch.randn(width),
        f"{name}.bias": 0.1 * torch.randn(width),
    }


def block(name, into, out):
    return {
        **norm(f"{name}.norm1", into),
        **conv(f"{name}.conv1", out, into, 3),
        **norm(f"{name}.norm2", out),
        **conv(f"{name}.conv2", out, out, 3),
        **conv(f"{name}.conv_out", out, into, 1),
    }


def attention(name, width):
    parts = [conv(f"{name}.{k}", width, width, 1) for k in ("q", "k", "v", "proj_out")]
    return {k: v for part in (norm(f"{name}.norm", width), *parts) for k, v in part.items()}


def flat_weights(H):
    """Return random weights under the reference's names."""
    found, index, part = {}, 0, "encoder"

    def add(make, *sizes):
        nonlocal index
        found.update(make(f"{part}.blocks.{index}", *sizes))
        index += 1

    def centre(width):
        add(block, width, width)
        add(attention, width)
        add(block, width, width)

    side, width = H["img_size"], H["nf"]
    add(conv, width, H["n_channels"], 3)
    for i, multiplier in enumerate(H["ch_mult"]):
        for _ in range(H["res_blocks"]):
            add(block, width, H["nf"] * multiplier)
            width = H["nf"] * multiplier
            if side in H["attn_resolutions"]:
                add(attention, width)
        if i < len(H["ch_mult"]) - 1:
            add(lambda name, w: conv(f"{name}.conv", w, w, 3), width)
            side //= 2
    centre(width)
    add(norm, width)
    add(conv, H["emb_dim"], width, 3)
    part, index = "generator", 0
    if H["norm_first"]:
        add(norm, H["emb_dim"])
    add(conv, width, H["emb_dim"], 3)
    centre(width)
    for i in reversed(range(len(H["ch_mult"]))):
        for _ in range(int(H["res_blocks"] * H["gen_mul"])):
            add(block, width, H["nf"] * H["ch_mult"][i])
            width = H["nf"] * H["ch_mult"][i]
            if side in H["attn_resolutions"]:
                add(attention, width)
        if i:
            add(lambda name, w: conv(f"{name}.conv", w, w, 3), width)
            side *= 2
    add(norm, width)
    add(conv, H["n_channels"], width, 3)
    proj = conv("quantize.proj.0", H["codebook_size"], H["emb_dim"], 1)
    embed = {"quantize.embed.weight": torch.randn(H["codebook_size"], H["emb_dim"])}
    unused = conv("generator.logsigma.0", 4, 4, 3)
    return {**found, **proj, **embed, **unused}


def walk(weights, part, x):
    """Run a flat list, telling its entries by their keys."""

    def apply(name, x, **options):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def normed(name, x):
        return F.group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    index = 0
    while any(k.startswith(f"{part}.blocks.{index}.") for k in weights):
        name = f"{part}.blocks.{index}"
        index += 1
        if f"{name}.conv1.weight" in weights:
            y = apply(f"{name}.conv1", F.silu(normed(f"{name}.norm1", x)), padding=1)
            y = apply(f"{name}.conv2", F.silu(normed(f"{name}.norm2", y)), padding=1)
            x = (x if x.shape == y.shape else apply(f"{name}.conv_out", x)) + y
        elif f"{name}.q.weight" in weights:
            h = normed(f"{name}.norm", x)
            q, k, v = (apply(f"{name}.{n}", h).flatten(2) for n in "qkv")
            attended = v @ (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(-1).transpose(1, 2)
            x = x + apply(f"{name}.proj_out", attended.view_as(x))
        elif f"{name}.conv.weight" in weights:
            if part == "encoder":
                x = apply(f"{name}.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
            else:
                x = apply(f"{name}.conv", F.interpolate(x, scale_factor=2.0), padding=1)
        elif weights[f"{name}.weight"].ndim == 1:
            x = normed(name, x)
        else:
            x = apply(name, x, padding=1)
    return x


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_equals_the_flat_lists(layout):
    torch.manual_seed(0)
    H = {**BASE, **layout}
    weights = flat_weights(H)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    features = walk(weights, "encoder", images)
    logits = F.conv2d(features, weights["quantize.proj.0.weight"], weights["quantize.proj.0.bias"])
    bits = (logits > 0).float()
    factors = bits * 2 - 1 if H["use_tanh"] else bits
    latent = torch.einsum("bnhw,nd->bdhw", factors, weights["quantize.embed.weight"])
    expected = walk(weights, "generator", latent)

    config = binary_ae.tokenizer_config(H, image_size=16)
    model = Imported(config, binary_ae.tokenizer_weights(weights), "flat").build()
    codes = model.encode(images)
    assert torch.equal(codes.float(), bits.flatten(2).transpose(1, 2))
    torch.testing.assert_close(model.decode(codes), expected, rtol=1e-3, atol=1e-4)

    # The same layout, read off a released kind of file.
    file = {f"ae.{k}": v for k, v in weights.items()} | {"disc.main.0.weight": torch.zeros(1)}
    read = binary_ae.import_tokenizer(file, source="x", image_size=16, signed=H["use_tanh"])
    torch.testing.assert_close(read.build().decode(codes), expected, rtol=1e-3, atol=1e-4)


def test_other_files_are_refused():
    weights = flat_weights(BASE)
    with pytest.raises(CheckpointError, match=r"quantize\.embed\.weight"):
        binary_ae.import_tokenizer({"encoder.x": torch.zeros(1)}, source="x")
    with pytest.raises(CheckpointError, match="strange"):
        binary_ae.import_tokenizer({**weights, "strange": torch.zeros(1)}, source="x")
    del weights["encoder.blocks.2.conv.weight"], weights["encoder.blocks.2.conv.bias"]
    with pytest.raises(CheckpointError, match="not the list"):
        binary_ae.import_tokenizer(weights, source="x")
