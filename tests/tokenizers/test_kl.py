"""KL autoencoders: the bottleneck, its statistics, patches, and what importers read off weights."""

import pytest
import torch
import torch.multiprocessing as mp

from argen.build import build
from argen.errors import CheckpointError, UserError
from argen.interop import mar_klvae, va_vae
from argen.layers.noise import SeededNoise
from argen.runtime.presets import preset
from argen.tokenizers.kl import patchify, unpatchify
from argen.tokenizers.quantizers.gaussian import Gaussian


def tokenizer(*, quantizer=None, **options):
    torch.manual_seed(0)
    config = preset("tokenizer", "tiny_kl")
    config["quantizer"] |= quantizer or {}
    return build({**config, **options}).eval()


def random_images(rows=4, side=16, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 3, side, side, generator=draws) * 2 - 1


def test_divergence_and_samples_are_those_of_a_normal():
    z = torch.randn(3, 5, 8)
    posterior = Gaussian(4).posterior(z)
    normal = torch.distributions.Normal(z[..., :4], (0.5 * z[..., 4:]).exp())
    wanted = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.kl(), wanted.sum(-1))
    many = Gaussian(4)(z[:1].expand(4000, -1, -1), noise=SeededNoise(range(4000))).z
    torch.testing.assert_close(many.mean(0), normal.mean[0], rtol=0.0, atol=0.15)
    torch.testing.assert_close(many.std(0), normal.stddev[0], rtol=0.1, atol=0.0)


def test_log_variance_is_clamped():
    extreme = Gaussian(1).posterior(torch.tensor([[0.0, 99.0], [0.0, -99.0]]))
    assert extreme.log_variance.flatten().tolist() == [20.0, -30.0]


def test_without_a_variance_it_is_constant():
    quantizer = Gaussian(3, variational=False)
    assert quantizer.in_dim == 3
    posterior = quantizer.posterior(torch.zeros(2, 3))
    assert posterior.log_variance.eq(1.0).all()


def test_encode_is_the_mean_without_noise_and_repeatable_with_it():
    model, images = tokenizer(), random_images()
    mean = model.encode(images)
    model.train()
    torch.testing.assert_close(model.encode(images), mean)
    assert model.quantizer.training
    model.eval()
    drawn = model.encode(images, noise=SeededNoise(range(4)))
    assert not torch.allclose(drawn, mean)
    alone = model.encode(images[2:3], noise=SeededNoise([2]))
    torch.testing.assert_close(alone, drawn[2:3], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("per_channel", [True, False])
def test_measured_codes_have_unit_scale(per_channel):
    model, images = tokenizer(), random_images(rows=16)
    model.quant_conv.bias.copy_(torch.linspace(-2, 1, 8))
    model.quant_conv.weight.mul_(3.0)
    before = model.decode(model.encode(images))
    model.measure(images.split(5), per_channel=per_channel)
    codes = model.encode(images, noise=SeededNoise(range(16))).flatten(0, 1)
    axes = 0 if per_channel else (0, 1)
    torch.testing.assert_close(
        codes.mean(axes), torch.zeros_like(codes.mean(axes)), rtol=0, atol=0.05
    )
    torch.testing.assert_close(codes.std(axes), torch.ones_like(codes.std(axes)), rtol=0, atol=0.15)
    # Only the code language changes, not the images.
    torch.testing.assert_close(model.decode(model.encode(images)), before, rtol=1e-4, atol=1e-4)
    model.measure([images], per_channel=False, centre=False)
    assert model.quantizer.mean.eq(0).all()
    assert model.quantizer.std.unique().numel() == 1


def test_statistics_follow_training():
    model, images = tokenizer(quantizer={"momentum": 0.1}), random_images(rows=8)
    model.train()
    for _ in range(40):
        model(images)
    tracked = model.quantizer.mean.clone(), model.quantizer.std.clone()
    model.measure([images])
    torch.testing.assert_close(tracked[0], model.quantizer.mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(tracked[1], model.quantizer.std, rtol=1e-3, atol=1e-4)
    still = tokenizer(quantizer={"momentum": 0.0}).train()
    still(images)
    assert still.quantizer.std.eq(1).all()


def _two_ranks(rank, path, queue):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=2
    )
    quantizer, z = Gaussian(2), torch.randn(12, 4, generator=torch.Generator().manual_seed(3))
    quantizer.measure([z[:4] if rank == 0 else z[4:]])
    queue.put((rank, quantizer.mean.tolist(), quantizer.std.tolist()))
    torch.distributed.destroy_process_group()


def test_two_processes_measure_what_one_does(tmp_path):
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    mp.spawn(_two_ranks, args=(tmp_path / "store", queue), nprocs=2)
    found = [queue.get() for _ in range(2)]
    single = Gaussian(2)
    single.measure([torch.randn(12, 4, generator=torch.Generator().manual_seed(3))])
    for _, mean, std in found:
        torch.testing.assert_close(torch.tensor(mean), single.mean)
        torch.testing.assert_close(torch.tensor(std), single.std)


def test_patches_keep_channel_row_column_order():
    x = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    codes = patchify(x, 2)
    assert codes.shape == (1, 6, 8)
    # First patch: channel 0 rows 0 and 1, then channel 1.
    assert codes[0, 0].tolist() == [0, 1, 6, 7, 24, 25, 30, 31]
    torch.testing.assert_close(unpatchify(codes, (2, 3), 2), x)


@torch.no_grad()
def test_a_patch_of_latents_is_one_code():
    plain, patched = tokenizer(), tokenizer(patch=2)
    patched.load_state_dict(plain.state_dict())
    images = random_images()
    assert patched.spec.grid == (4, 4)
    assert patched.spec.dim == 16
    codes = patched.encode(images)
    torch.testing.assert_close(patched.decode(codes), plain.decode(plain.encode(images)))
    with pytest.raises(UserError, match="patch=4"):
        tokenizer(image_size=20, patch=4)


def test_sampling_has_gradients():
    model = tokenizer().train()
    output = model(random_images())
    output.images.square().mean().backward()
    weight = model.quant_conv.weight.grad
    assert weight[:4].abs().sum() > 0
    assert weight[4:].abs().sum() > 0  # the log variance, through the sample
    assert output.latents.shape == (4, 8, 8, 4)


def test_wrong_statistics_are_named():
    with pytest.raises(UserError, match="one a channel"):
        Gaussian(4, std=[1.0, 2.0])
    with pytest.raises(UserError, match="positive"):
        Gaussian(4, std=0.0)
    with pytest.raises(UserError, match="momentum"):
        Gaussian(4, momentum=2.0)


REFERENCE = {
    "AutoencoderKL": {"embed_dim": 4},
    "Encoder": {"ch": 32, "ch_mult": [1, 2, 1], "resolution": 64, "attn_resolutions": [32, 16]},
    "Decoder": {"ch": 32, "ch_mult": [1, 2, 1], "resolution": 64, "attn_resolutions": [64]},
}


def reference_weights():
    """Return a state dict under the published keys, by running the rename rules backwards."""
    for part in ("Encoder", "Decoder"):
        REFERENCE[part].setdefault("z_channels", 4)
    model = build(mar_klvae.tokenizer_config(REFERENCE, image_size=64))
    found = {}
    for key, value in model.state_dict().items():
        if key.startswith("quantizer."):
            continue
        for i in range(3):
            key = key.replace(f"encoder.levels.{i}.", f"encoder.down.{i}.")
            key = key.replace(f"decoder.levels.{i}.", f"decoder.up.{2 - i}.")
        for ours, theirs in (("middle.0", "mid.block_1"), ("middle.1", "mid.attn_1")):
            key = key.replace(ours, theirs)
        key = key.replace("middle.2", "mid.block_2").replace(".attentions.", ".attn.")
        key = key.replace(".blocks.", ".block.").replace(".shortcut.", ".nin_shortcut.")
        if ".resample." in key:
            key = key.replace("resample", "downsample" if "encoder" in key else "upsample")
        if ".attn" in key and ".qkv." in key:
            for name, piece in zip("qkv", value.chunk(3)):
                found[key.replace(".qkv.", f".{name}.")] = piece
        else:
            found[key.replace(".out.", ".proj_out.")] = value
    return model, found


def test_importers_read_the_network_off_its_weights():
    model, weights = reference_weights()
    images = random_images(rows=2, side=64)
    made = mar_klvae.import_tokenizer({"model": weights}, source="kl.ckpt", image_size=64).build()
    with torch.no_grad():
        torch.testing.assert_close(made.encode(images), model.eval().encode(images))
    assert made.quantizer.std.unique().item() == pytest.approx(1 / 0.2325)
    scaled = mar_klvae.import_tokenizer(weights, source="sd.ckpt", image_size=64, scale=0.18215)
    assert scaled.build().quantizer.std[0].item() == pytest.approx(1 / 0.18215)


def test_va_vae_brings_statistics_and_losses():
    _, weights = reference_weights()
    checkpoint = {
        "state_dict": {
            **weights,
            "loss.logvar": torch.zeros(()),
            "linear_proj.weight": torch.zeros(2, 2),
            "foundation_model.model.norm.weight": torch.zeros(2),
        }
    }
    statistics = {"mean": torch.randn(1, 4, 1, 1), "std": torch.rand(1, 4, 1, 1) + 0.5}
    made = va_vae.import_tokenizer(
        checkpoint, source="vavae.pt", image_size=64, statistics=statistics
    ).build()
    torch.testing.assert_close(made.quantizer.mean, statistics["mean"].flatten())
    torch.testing.assert_close(made.quantizer.std, statistics["std"].flatten())
    plain = va_vae.import_tokenizer(checkpoint, source="vavae.pt", image_size=64).build()
    images = random_images(rows=2, side=64)
    with torch.no_grad():
        codes = (plain.encode(images) - made.quantizer.mean) / made.quantizer.std
        torch.testing.assert_close(made.encode(images), codes, rtol=1e-4, atol=1e-5)
    wrong = {"mean": torch.zeros(3), "std": torch.ones(3)}
    with pytest.raises(CheckpointError, match="3 channels"):
        va_vae.import_tokenizer(checkpoint, source="vavae.pt", statistics=wrong)


def test_other_checkpoints_are_refused():
    with pytest.raises(CheckpointError, match="not a KL autoencoder"):
        mar_klvae.import_tokenizer({"encoder.conv.weight": torch.zeros(2)}, source="x.pt")
    with pytest.raises(UserError, match="give_pre_end"):
        mar_klvae.tokenizer_config({"Decoder": {"give_pre_end": True}}, image_size=64)
