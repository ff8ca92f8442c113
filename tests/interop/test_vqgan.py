"""VQGAN files of taming-transformers, latent-diffusion and MaskGIT, read as they are published."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from argen.build import build
from argen.errors import CheckpointError, UserError
from argen.interop import maskgit_vqgan
from argen.interop.llamagen import llamagen, llamagen_objective
from argen.interop.taming import taming_objective
from argen.interop.taming import tokenizer as taming
from argen.objectives.discriminators import StyleGANDiscriminator
from argen.runtime.presets import preset

GUMBEL = Path(__file__).parents[1] / "golden" / "taming-gumbel"

NETWORK = {
    "ch": 32,
    "ch_mult": [1, 1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [16, 8],
    "resolution": 16,
    "z_channels": 8,
    "double_z": False,
}
CONFIG = {"ddconfig": NETWORK, "n_embed": 20, "embed_dim": 4}


def published_keys(weights, *, numbered_middle=False):
    """Return our weights under the names, shapes and level numbers of a published file."""
    last = max(int(m[1]) for k in weights if (m := re.match(r"decoder\.levels\.(\d+)", k)))
    found = {}
    for key, value in weights.items():
        key = re.sub(r"^encoder\.levels", "encoder.down", key)
        key = re.sub(r"^decoder\.levels\.(\d+)", lambda m: f"decoder.up.{last - int(m[1])}", key)
        key = key.replace(".blocks.", ".block.").replace(".attentions.", ".attn.")
        key = key.replace(".shortcut.", ".nin_shortcut.")
        resampled = "upsample_conv" if numbered_middle else "upsample.conv"
        key = re.sub(r"(decoder.*)\.resample\.conv", rf"\1.{resampled}", key)
        key = re.sub(r"(encoder.*)\.resample\.conv", r"\1.downsample.conv", key)
        names = "012" if numbered_middle else ("block_1", "attn_1", "block_2")
        key = re.sub(
            r"middle\.(\d)", partial(lambda names, m: f"mid.{names[int(m[1])]}", names), key
        )
        key = key.replace("quantizer.codebook", "quantize.embedding")
        key = key.replace(".out.", ".proj_out.")
        if ".qkv." in key:
            for part, piece in zip("qkv", value.chunk(3)):
                found[key.replace("qkv", part)] = piece
        else:
            found[key] = value
    return found


@pytest.fixture(scope="module")
def vqgan():
    torch.manual_seed(0)
    model = build(taming.tokenizer_config(CONFIG, image_size=16)).eval()
    # A plain initialisation hides mistakes: all biases of norms are 0, all codes tiny.
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1
    return model


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_attention_goes_by_nominal_resolution():
    config = taming.tokenizer_config(CONFIG, image_size=64)
    assert config["encoder"]["attention_levels"] == [0, 1]
    odd = {**NETWORK, "resolution": 30, "attn_resolutions": [15, 14]}
    config = taming.tokenizer_config({**CONFIG, "ddconfig": odd}, image_size=64)
    assert config["encoder"]["attention_levels"] == [1]
    assert config["decoder"]["attention_levels"] == [1]


def test_a_file_says_how_its_network_is_built(vqgan, images):
    weights = published_keys(vqgan.state_dict())
    assert "decoder.up.2.attn.0.q.weight" not in weights
    assert "decoder.up.0.attn.1.proj_out.bias" in weights
    checkpoint = {"state_dict": {**weights, "loss.logvar": torch.zeros(1)}, "epoch": 3}
    imported = taming.import_tokenizer(checkpoint, source="last.ckpt", image_size=16)
    assert imported.config["encoder"] == vqgan.config["encoder"] | {"dropout": 0.0}
    torch.testing.assert_close(imported.build()(images).images, vqgan(images).images)


def test_nested_in_a_generators_file(vqgan, images):
    weights = {f"first_stage_model.{k}": v for k, v in published_keys(vqgan.state_dict()).items()}
    weights["transformer.head.weight"] = torch.zeros(2, 2)
    model = taming.import_tokenizer(weights, source="net2net.ckpt", image_size=16).build()
    torch.testing.assert_close(model(images).images, vqgan(images).images)


def test_averaged_copies_are_taken_only_when_asked_for(vqgan, images):
    weights = published_keys(vqgan.state_dict())
    averaged = {"model_ema." + k.replace(".", ""): v * 0.9 for k, v in weights.items()}
    averaged["model_ema.decay"] = torch.tensor(0.99)
    both = {"state_dict": {**weights, **averaged}}
    plain = taming.import_tokenizer(both, source="f8.ckpt", image_size=16).build()
    torch.testing.assert_close(plain.decoder.conv_in.weight, vqgan.decoder.conv_in.weight)
    ema = taming.import_tokenizer(both, source="f8.ckpt", image_size=16, ema=True).build()
    torch.testing.assert_close(ema.decoder.conv_in.weight, vqgan.decoder.conv_in.weight * 0.9)
    with pytest.raises(CheckpointError, match="ema=false"):
        taming.import_tokenizer({"state_dict": weights}, source="f8.ckpt", ema=True)


def test_list_of_used_codes(vqgan, images):
    weights = published_keys(vqgan.state_dict())
    used = vqgan.encode(images).unique().flip(0)
    weights["quantize.used"] = used
    model = taming.import_tokenizer(weights, source="remap.ckpt", image_size=[16, 24]).build()
    assert model.spec.vocab_size == len(used)
    codes = model.encode(images)
    assert torch.equal(used[codes], vqgan.encode(images))
    torch.testing.assert_close(model.decode(codes), vqgan(images).images)


def test_gumbel_file(images):
    weights = load_file(str(GUMBEL / "weights.safetensors"))
    imported = taming.import_tokenizer({"state_dict": weights}, source="g.ckpt", image_size=16)
    assert imported.config["quantizer"]["_target_"].endswith("Gumbel")
    model = imported.build()
    square = images[:, :, :, :16]
    torch.testing.assert_close(model.decode(model.encode(square)), model(square).images)


def test_foreign_and_broken_files_are_refused(vqgan):
    weights = published_keys(vqgan.state_dict())
    with pytest.raises(CheckpointError, match="no codebook"):
        taming.import_tokenizer(
            {k: v for k, v in weights.items() if "quantize" not in k}, source="kl.ckpt"
        )
    with pytest.raises(CheckpointError, match=r"encoder\.extra"):
        taming.import_tokenizer({**weights, "encoder.extra": torch.zeros(1)}, source="new.ckpt")
    del weights["decoder.conv_out.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing \(decoder\.conv_out\.bias\)"):
        taming.import_tokenizer(weights, source="cut.ckpt").build()
    doubled = {**CONFIG, "ddconfig": {**NETWORK, "double_z": True}}
    with pytest.raises(UserError, match="double_z=false"):
        taming.tokenizer_config(doubled, image_size=16)
    with pytest.raises(UserError, match="must be equal"):
        taming.tokenizer_config({**CONFIG, "kl_weight": 1.0}, image_size=16)


def test_maskgit_file():
    torch.manual_seed(0)
    config = preset("tokenizer", "maskgit_vqgan")
    for part in ("encoder", "decoder"):
        config[part] |= {"channels": 32, "multipliers": [1, 2, 2]}
    config["encoder"]["out_channels"] = config["decoder"]["in_channels"] = 6
    config["quantizer"] |= {"codes": 30, "dim": 6}
    config["image_size"] = 16
    model = build(config).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1
    weights = published_keys(model.state_dict(), numbered_middle=True)
    assert "decoder.up.2.upsample_conv.weight" in weights
    assert "decoder.up.0.upsample_conv.weight" not in weights
    loaded = maskgit_vqgan.import_tokenizer(weights, source="m.bin", image_size=16).build()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(loaded(images).images, model(images).images)
    # The networks see [0, 1]: black is 0 to them.
    black = loaded.encoder(torch.zeros(1, 3, 16, 16))
    torch.testing.assert_close(loaded.latents(-torch.ones(1, 3, 16, 16)).permute(0, 3, 1, 2), black)
    with pytest.raises(CheckpointError, match="taming importer"):
        maskgit_vqgan.import_tokenizer(
            {k.replace("mid.", "mid.block_"): v for k, v in weights.items()}, source="t.ckpt"
        )


def test_published_loss_weights():
    config = {
        **CONFIG,
        "lossconfig": {
            "params": {
                "disc_start": 7,
                "disc_factor": 0.5,
                "disc_weight": 0.8,
                "codebook_weight": 2.0,
                "perceptual_weight": 0.0,
                "disc_ndf": 8,
                "disc_num_layers": 1,
                "use_actnorm": True,
                "disc_loss": "vanilla",
            }
        },
    }
    objective = build(taming_objective.objective_config(config), trust=True)
    assert objective.weights == {
        "l1": 1.0,
        "perceptual": 0.0,
        "codebook": 0.5,
        "commitment": 2.0,
        "adversarial": 0.4,
    }
    assert objective.discriminator_weight == 0.5
    assert objective.discriminator_form == "vanilla"
    assert [objective.trains_discriminator(step) for step in (6, 7)] == [False, True]
    gumbel = {**CONFIG, "kl_weight": 0.1, "lossconfig": {"target": "DummyLoss"}}
    assert build(taming_objective.objective_config(gumbel), trust=True).weights["kl"] == 0.1


def test_llamagen_style_discriminator():
    torch.manual_seed(0)
    ours = StyleGANDiscriminator(image_size=16, max_channels=8)
    names = {"skip": "conv_res", "conv1": "net.0", "conv2": "net.2", "down": "downsample.1"}
    published = {}
    for key, value in ours.state_dict().items():
        if key.startswith("stages."):
            _, stage, part, name = key.split(".")
            key = f"blocks.{int(stage) + 2}.{names[part]}.{name}"
        for mine, theirs in {
            "conv_in": "blocks.0",
            "conv_out": "final_conv.0",
            "hidden": "final_linear.0",
            "logit": "final_linear.2",
        }.items():
            key = re.sub(rf"^{mine}\.", f"{theirs}.", key)
        published[f"discriminator.{key}"] = value
    published["discriminator.blocks.2.downsample.0.f"] = torch.tensor([1.0, 2.0, 1.0])
    translated = llamagen_objective.discriminator_weights(published)
    assert set(translated) == set(ours.state_dict())
    assert all(torch.equal(translated[k], v) for k, v in ours.state_dict().items())


F16 = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16]}
F8 = {"ch": 128, "num_res_blocks": 2, "attn_resolutions": [32], "resolution": 256}
MASKGIT = {
    "hidden_channels": 128,
    "channel_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "z_channels": 256,
    "num_embeddings": 1024,
    "embedding_dim": 256,
}


def vqgan_config(network, codes, dim, **more):
    network = {"resolution": 256, "z_channels": dim, **network}
    return taming.tokenizer_config(
        {"ddconfig": network, "n_embed": codes, "embed_dim": dim, **more}, image_size=256
    )


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("taming_f16_1024", vqgan_config(F16, 1024, 256)),
        ("taming_f16_16384", vqgan_config(F16, 16384, 256)),
        ("taming_gumbel_f8", vqgan_config({**F8, "ch_mult": [1, 1, 2, 4]}, 8192, 256, kl_weight=1)),
        ("taming_f8_256", vqgan_config({**F8, "ch_mult": [1, 2, 2, 4]}, 256, 4)),
        ("taming_f8_16384", vqgan_config({**F8, "ch_mult": [1, 2, 2, 4]}, 16384, 4)),
        ("maskgit_vqgan", maskgit_vqgan.tokenizer_config(MASKGIT, image_size=256)),
        (
            "llamagen_vq8",
            llamagen.tokenizer_config(
                {"encoder_ch_mult": [1, 2, 2, 4], "decoder_ch_mult": [1, 2, 2, 4]}, image_size=256
            ),
        ),
    ],
)
def test_presets_are_the_published_networks(name, config):
    with torch.device("meta"):
        ours, published = build(preset("tokenizer", name)), build(config)
    assert ours.spec == published.spec
    shapes = {k: v.shape for k, v in ours.state_dict().items()}
    assert shapes == {k: v.shape for k, v in published.state_dict().items()}
