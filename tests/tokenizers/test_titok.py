import copy
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch.nn import functional as F

from argen.build import build
from argen.data.emoji import emoji
from argen.errors import CheckpointError, SpecError, UserError
from argen.interop import one_d_piece
from argen.interop.titok import tokenizer as titok
from argen.layers.noise import SeededNoise
from argen.runtime.presets import preset
from argen.tokenizers.quantizers.clustering import ClusteringVQ
from argen.tokenizers.start import start_from

GOLDEN = Path(__file__).parents[1] / "golden"
CNN = {
    "channels": 16,
    "multipliers": [1, 2, 2],
    "blocks": 1,
    "middle_attention": False,
    "norm_groups": 8,
}


def make(name="tiny_titok", *, seed=0, encoder=None, decoder=None, **options):
    """Build a tiny preset with some arguments changed."""
    torch.manual_seed(seed)
    config = preset("tokenizer", name)
    config["encoder"] |= encoder or {}
    config["decoder"] |= decoder or {}
    return build({**config, **options}).eval()


def two_stage(*, second_stage=False, with_proxy=True, seed=0):
    """Build one stage of a tiny two-stage model whose proxy has 32 codes on a 4x4 grid."""
    cnn = "argen.tokenizers.cnn"
    proxy = {
        "_target_": "argen.tokenizers.proxy_codes.ProxyCodes",
        "quantizer": {"_target_": "argen.tokenizers.quantizers.vq.VQ", "codes": 32, "dim": 8},
        "decoder": {"_target_": f"{cnn}.Decoder", "in_channels": 8, **CNN},
        "encoder": {"_target_": f"{cnn}.Encoder", "out_channels": 8, **CNN},
    }
    model = make(
        seed=seed,
        encoder={"legacy_layout": True},
        decoder={"proxy_codes": 32},
        proxy=build(proxy) if with_proxy else None,
        second_stage=second_stage,
    )
    if with_proxy:
        # Rows as long as the encoder's vectors, so that images fall on different codes.
        draws = torch.Generator().manual_seed(0)
        model.proxy.quantizer.codebook.weight.data = 0.3 * torch.randn(32, 8, generator=draws)
    return model


def random_images(rows=4, side=16, seed=0):
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.rand(rows, 3, 4, 4, generator=draws) * 2 - 1
    return F.interpolate(coarse, size=(side, side), mode="bilinear")


def train(model, images, steps, lr=2e-3):
    """Return the sum of losses, images included, before and after some steps."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    history = []
    for _ in range(steps):
        output = model(images)
        loss = F.mse_loss(output.images, images) + sum(output.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({k: v.item() for k, v in output.losses.items()} | {"total": loss.item()})
    return history


def test_first_stage_learns_the_codes_of_its_teacher():
    model, images = two_stage(), random_images()
    before = copy.deepcopy(model.proxy.state_dict())
    targets = model.proxy.targets(images)
    assert targets.shape == (4, 4, 4)
    assert len(targets.unique()) > 4
    history = train(model, images, 40)
    assert history[-1]["proxy"] < 0.5 * history[0]["proxy"]
    assert all(torch.equal(v, before[k]) for k, v in model.proxy.state_dict().items())
    # Taught well, the image is the one the teacher makes of its own codes.
    train(model, images, 200)
    model.eval()
    with torch.no_grad():
        logits = model.decoder(model.quantizer(model.latents(images)).z)
        taught = model.proxy.quantizer.lookup(targets).permute(0, 3, 1, 2)
        right = (logits.argmax(-1) == targets).float().mean()
        assert right > 0.9
        decoded, wanted = model.decode(model.encode(images)), model.proxy.decoder(taught) * 2 - 1
    assert F.mse_loss(decoded, wanted) < 0.2 * wanted.var()
    assert model.last_layer() is None


def test_first_stage_loss_reaches_all_but_the_teacher():
    model = two_stage().train()
    sum(model(random_images()).losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith("proxy.")
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_second_stage_starts_from_the_first_and_trains_pixels_alone():
    first, images = two_stage(), random_images()
    second = two_stage(second_stage=True, seed=1)
    second.proxy.encoder = None  # only the first stage needs a teacher's codes
    assert "not used: proxy.encoder" in start_from(second, weights=first.state_dict())
    assert torch.equal(first.encode(images), second.encode(images))
    before = copy.deepcopy(second.state_dict())
    history = train(second, images, 30)
    assert history[-1]["total"] < 0.7 * history[0]["total"]
    assert set(history[0]) == {"total"}  # the quantiser's losses play no part
    moved = {k for k, v in second.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[0] for k in moved} == {"decoder", "proxy"}
    assert any(k.startswith("proxy.quantizer") for k in moved)
    assert second.last_layer() is second.proxy.decoder.conv_out.weight


def test_a_first_stage_without_teacher_says_what_it_lacks():
    model = two_stage(with_proxy=False)
    codes = model.encode(random_images())
    for call in (lambda: model.decode(codes), lambda: model(random_images())):
        with pytest.raises(UserError, match="proxy="):
            call()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"second_stage": True}, "proxy="),
        ({"image_size": 32}, "differ"),
        ({"encoder": {"out_channels": 16}}, "takes 8 numbers"),
        ({"encoder": {"latents": 8}, "decoder": {"latents": 16}}, "latents"),
        ({"encoder": {"image_size": 18}}, "nearest that is: 16x16"),
        ({"tail_drop": "uniform"}, "any_length=true"),
        ({"any_length": True, "tail_drop": "some"}, "none, uniform or powers"),
        ({"emit": 4}, "emit=4"),
    ],
)
def test_parts_that_do_not_fit_are_refused(options, match):
    with pytest.raises(UserError, match=match):
        make(**options)


def test_other_sizes_are_refused():
    with pytest.raises(UserError, match=r"32x32.*16x16"):
        make().encode(random_images(side=32))


def test_grids_need_not_be_square():
    sizes = {"image_size": [16, 24]}
    model = make(encoder=sizes, decoder=sizes, **sizes)
    images = F.interpolate(random_images(), size=(16, 24))
    assert model(images).images.shape == images.shape


def test_any_prefix_decodes():
    model = make("tiny_one_d_piece")
    images = random_images()
    codes = model.encode(images)
    whole = model.decode(codes)
    for n in (1, 5, 16):
        cut = model.decode(codes, length=n)
        torch.testing.assert_close(cut, model.decode(codes[:, :n]))
        assert torch.equal(cut, whole) == (n == 16)
    for length in (0, 17):
        with pytest.raises(UserError, match=r"1\.\.16"):
            model.decode(codes, length=length)
    with pytest.raises(SpecError, match="do not fit"):
        model.decode(codes[:, :0])
    with pytest.raises(UserError, match="leave length out"):
        make().decode(codes, length=4)


def test_fewer_tokens_may_be_emitted():
    model = make("tiny_one_d_piece", emit=6)
    codes = model.encode(random_images())
    model.spec.check(codes)
    assert model.spec.length == codes.shape[1] == 6
    whole = make("tiny_one_d_piece").encode(random_images())
    assert torch.equal(codes, whole[:, :6])


@pytest.mark.parametrize(
    ("kind", "lengths"), [("uniform", set(range(1, 17))), ("powers", {1, 2, 4, 8, 16})]
)
def test_tail_drop_draws_one_length_a_batch(kind, lengths):
    model, images = make("tiny_one_d_piece", tail_drop=kind).train(), random_images()
    assert {model.keep(SeededNoise([seed])) for seed in range(300)} == lengths
    assert {model.keep(None) for _ in range(300)} == lengths
    noise = SeededNoise(range(4))
    kept = model.quantizer(model.latents(images)).z[:, : model.keep(noise)]
    assert kept.shape[1] < 16
    torch.testing.assert_close(model(images, noise=noise).images, model.decode_latents(kept))
    model.eval()
    assert model.keep(noise) == 16


@pytest.mark.full
@pytest.mark.parametrize("name", ["tiny_titok", "tiny_one_d_piece", "tiny_titok_vae"])
def test_trains_on_images(name):
    source = emoji(image_size=16, categories=["smileys"], shift=0)
    images = torch.stack([source.train[i]["image"] for i in range(len(source.train))])
    model, weights = make(name).train(), {"codebook": 1.0, "commitment": 0.25, "kl": 1e-5}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, betas=(0.9, 0.95))
    for _ in range(800):
        batch = images[torch.randint(len(images), (32,))]
        output = model(batch)
        own = sum(weights[k] * v for k, v in output.losses.items())
        optimizer.zero_grad()
        (F.mse_loss(output.images, batch) + own).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        codes = model.encode(images)
        mean_image = float((images - images.mean(0)).square().mean())
        assert F.mse_loss(model.decode(codes), images) < 0.72 * mean_image  # 14.7 dB
        if model.any_length:
            # The first tokens tell most.
            one, two, all_of_them = (
                F.mse_loss(model.decode(codes, length=n), images) for n in (1, 2, 16)
            )
            assert all_of_them < 0.95 * two
            assert two < 0.98 * one


def test_text_aware_decoders_need_their_text():
    model = make(decoder={"text_dim": 6, "text_length": 5})
    codes, text = model.encode(random_images(2)), torch.randn(2, 5, 6)
    with_text = model.decode(codes, text=text)
    assert not torch.allclose(with_text, model.decode(codes, text=-text))
    with pytest.raises(UserError, match="TiTok cannot encode with text=; it takes noise"):
        model.encode(random_images(2), text=text)
    torch.testing.assert_close(model(random_images(2), text=text).images, with_text)
    for wrong in (None, text[:, :4], text[..., :5]):
        with pytest.raises(UserError, match=r"\(B, 5, 6\)"):
            model.decode(codes, text=wrong)
    with pytest.raises(UserError, match="TiTok cannot decode with text="):
        make().decode(codes, text=text)


def test_gaussian_codes_are_normalised_samples():
    model, images = make("tiny_titok_vae"), random_images()
    plain = model.encode(images)
    model.quantizer.mean.fill_(0.5)
    model.quantizer.std.fill_(2.0)
    torch.testing.assert_close(model.encode(images), (plain - 0.5) / 2.0)
    torch.testing.assert_close(model.decode(model.encode(images)), model(images).images)
    drawn = model.encode(images, noise=SeededNoise(range(4)))
    assert not torch.allclose(drawn, model.encode(images))
    torch.testing.assert_close(
        drawn[2:3], model.encode(images[2:3], noise=SeededNoise([2])), rtol=1e-4, atol=1e-5
    )


def rows_of_cvq(**options):
    """Return a codebook of which half lies among normal vectors and half far away."""
    quantizer = ClusteringVQ(16, 4, **options)
    rows = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    rows[8:] *= 20
    quantizer.codebook.weight.data = rows
    return quantizer.train()


def test_unused_codes_move_to_the_data():
    quantizer = rows_of_cvq()
    z = torch.randn(256, 4, generator=torch.Generator().manual_seed(1))
    before = quantizer.codebook.weight.detach().clone()
    used = quantizer(z).ids.unique()
    assert 4 < len(used) <= 8
    after = quantizer.codebook.weight.detach().clone()
    unused = torch.tensor([k for k in range(16) if k not in used])
    assert (torch.cdist(before[unused], z).amin(1) > 1).all()
    # exp(-0.001) of the way to the nearest vector of the batch.
    share = torch.exp(torch.tensor(-1e-3))
    nearest = z[torch.cdist(before[unused], z).argmin(1)]
    torch.testing.assert_close(after[unused], before[unused].lerp(nearest, share))
    often = used[quantizer.usage[used] > 5e-4]
    assert len(often)
    torch.testing.assert_close(after[often], before[often], rtol=2e-3, atol=2e-3)
    quantizer.eval()
    quantizer(z)
    assert torch.equal(quantizer.codebook.weight, after)


@pytest.mark.parametrize("l2_norm", [False, True])
def test_moving_codes_leave_the_gradient_of_the_old_ones(l2_norm):
    quantizer = rows_of_cvq(l2_norm=l2_norm)
    twin = copy.deepcopy(quantizer).eval()
    z = torch.randn(8, 4)
    for one in (quantizer, twin):
        one(z).losses["codebook"].backward()
    torch.testing.assert_close(quantizer.codebook.weight.grad, twin.codebook.weight.grad)
    assert not torch.equal(quantizer.codebook.weight, twin.codebook.weight)


def _rank(rank, path, z, results):
    torch.distributed.init_process_group("gloo", f"file://{path}", rank=rank, world_size=2)
    quantizer = rows_of_cvq()
    quantizer(z.chunk(2)[rank])
    results[rank] = (quantizer.codebook.weight.tolist(), quantizer.usage.tolist())
    torch.distributed.destroy_process_group()


def test_codes_move_alike_on_all_processes(tmp_path):
    z = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, (tmp_path / "store", z, results), nprocs=2)
        ranks = [results[0], results[1]]
    quantizer = rows_of_cvq()
    quantizer(z)
    for weight, usage in ranks:
        torch.testing.assert_close(torch.tensor(weight), quantizer.codebook.weight.detach())
        torch.testing.assert_close(torch.tensor(usage), quantizer.usage)


def recorded(name):
    directory = GOLDEN / name
    return (load_file(str(directory / f"{part}.safetensors")) for part in ("weights", "io"))


@pytest.mark.parametrize(
    ("name", "size", "heads"),
    [
        ("titok-vq-stage1", 16, (4, 2)),
        ("titok-vq-single-stage", 48, (2, 4)),
        ("titok-vae", 40, (2, 4)),
        ("ta-titok", 40, (2, 4)),
    ],
)
def test_every_size_is_read_off_a_released_file(name, size, heads):
    weights, io = recorded(name)
    # Published files come bare or wrapped.
    checkpoint = {"state_dict": weights}
    imported = titok.import_tokenizer(checkpoint, source=name, image_size=size, heads=heads)
    model = imported.build()
    codes = model.encode(io["image"] * 2 - 1)
    if "indices" in io:
        assert torch.equal(codes, io["indices"].squeeze(1))
    else:
        mean = io["mean"].squeeze(2).transpose(1, 2)
        torch.testing.assert_close(codes, mean, rtol=1e-4, atol=1e-4)
    assert model.image_size == (size, size)
    assert not model.any_length
    with pytest.raises(UserError, match=f"image_size={size}"):
        titok.import_tokenizer(weights, source=name, image_size=256, heads=heads)
    with pytest.raises(UserError, match="heads="):
        titok.import_tokenizer(weights, source=name, image_size=size)


def test_foreign_files_are_refused_by_name():
    weights, _ = recorded("maskgit-bert")
    with pytest.raises(CheckpointError, match=r"x\.bin is not a TiTok"):
        titok.import_tokenizer(weights, source="x.bin")
    weights, _ = recorded("titok-vae")
    with pytest.raises(CheckpointError, match=r"x\.bin: 1 unknown keys \(odd\.key\)"):
        titok.import_tokenizer(
            {**weights, "odd.key": torch.zeros(1)}, source="x.bin", image_size=40, heads=(2, 4)
        )


def test_continuous_codes_take_the_generators_scale():
    weights, io = recorded("titok-vae")
    options = {"source": "x", "image_size": 40, "heads": (2, 4)}
    plain, scaled = (
        titok.import_tokenizer(weights, scale=s, **options).build().encode(io["image"] * 2 - 1)
        for s in (1.0, 0.7525)
    )
    torch.testing.assert_close(scaled, 0.7525 * plain)


def test_one_d_piece_files_decode_any_prefix():
    weights, io = recorded("titok-vq-stage1")
    imported = one_d_piece.import_tokenizer(weights, source="x", image_size=16, heads=(4, 2))
    model = imported.build()
    assert model.any_length
    assert model.tail_drop == "uniform"
    z = model.quantizer.lookup(io["random_tokens"].squeeze(1))
    expected = io["decoded_random_tokens"].permute(0, 2, 3, 1)
    torch.testing.assert_close(model.decoder(z), expected, rtol=1e-4, atol=1e-4)
    assert model.decoder(z[:, :3]).shape == expected.shape


def test_usage_statistics_come_and_go():
    weights, _ = recorded("ta-titok")
    without = {k: v for k, v in weights.items() if k != "quantize.embed_prob"}
    assert "quantizer.usage" in titok.tokenizer_weights(weights)
    assert "quantizer.usage" not in titok.tokenizer_weights(weights, clustering=False)
    assert titok.tokenizer_weights(without, clustering=True)["quantizer.usage"].shape == (96,)


def test_impossible_configurations_are_refused():
    vq = {"token_size": 4, "num_latent_tokens": 4, "quantize_mode": "vae"}
    config = {"model": {"vq_model": vq}, "dataset": {"preprocessing": {"crop_size": 16}}}
    with pytest.raises(UserError, match="finetune_decoder=false"):
        titok.tokenizer_config(config)
    vq["quantize_mode"] = "pq"
    with pytest.raises(UserError, match="'pq'"):
        titok.tokenizer_config(config)
