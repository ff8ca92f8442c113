import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from argen.build import build
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.decoding.smooth import SmoothScales
from argen.errors import CheckpointError, IncompatibleError, SpecError, UserError
from argen.generators.var import VAR
from argen.interop import var, var_vqvae
from argen.interop.base import Imported
from argen.layers.noise import SeededNoise
from argen.pipeline import Pipeline
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment
from argen.tokenizers.quantizers.multiscale import MultiScaleVQ
from argen.training.optim import Optim

GOLDEN = Path(__file__).parent.parent / "golden" / "var"


def make(tokenizer_options=None, **options):
    """Return a tiny tokenizer and a VAR bound to it, off its initial weights."""
    torch.manual_seed(0)
    config = preset("tokenizer", "tiny_multiscale")
    config["quantizer"] |= tokenizer_options or {}
    tokenizer = build(config).eval()
    generator_config = {**preset("generator", "tiny_var"), **options}
    generator = build(for_codes(generator_config, tokenizer.spec, num_classes=10))
    generator.bind(tokenizer)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return tokenizer, generator.eval()


def released():
    weights = load_file(str(GOLDEN / "weights.safetensors"))
    return {
        part: {k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(part)}
        for part in ("vae_local", "var_wo_ddp")
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"shared_adaln": True}, {"cosine_attention": False}, {"ffn_ratio": 2.5, "layers": 2}],
)
def test_one_pass_a_scale_equals_teacher_forcing(options):
    tokenizer, generator = make({"scales": [1, 3, [4, 5], 8]}, **options)
    codes = tokenizer.encode(torch.rand(3, 3, 16, 16) * 2 - 1)
    cond = generator.conditioner(torch.tensor([1, 2, 3]))
    with torch.no_grad():
        state, parts, start = generator.start(cond), [], 0
        for group in generator.plan.groups:
            parts.append(generator.predict(state))
            assert torch.equal(parts[-1], generator.predict(state))  # asking twice changes nothing
            generator.commit(state, codes[:, start : start + len(group)])
            start += len(group)
        torch.testing.assert_close(torch.cat(parts, 1), generator.score(codes, cond))
        assert len(parts) == 4


def test_loss_trains_every_parameter_and_smooths_labels():
    tokenizer, generator = make(shared_adaln=True)
    codes = tokenizer.encode(torch.rand(4, 3, 16, 16) * 2 - 1)
    drop = torch.tensor([True, False, False, False])
    output = generator.loss(codes, generator.conditioner(torch.tensor([0, 1, 2, 3]), drop_B=drop))
    output.loss.backward()
    assert all(p.grad is not None for p in generator.parameters())
    cond = generator.conditioner(torch.tensor([0, 1, 2, 3]), drop_B=drop)
    expected = torch.nn.functional.cross_entropy(
        generator.score(codes, cond).flatten(0, 1), codes.flatten(), label_smoothing=0.2
    )
    generator.label_smoothing = 0.2
    smoothed = generator.loss(codes, cond)
    torch.testing.assert_close(smoothed.loss, expected)
    torch.testing.assert_close(smoothed.nll, output.nll)


def test_position_tables_and_temperatures_are_not_decayed():
    _, generator = make(shared_adaln=True)
    plain = Optim().make_optimizer(generator).param_groups[1]["params"]
    spared = {name for name, p in generator.named_parameters() if any(p is q for q in plain)}
    for part in ("pos", "pos_start", "level_embed", "blocks.0.offsets"):
        assert part in spared
    assert "blocks.0.attention.q_norm.log_scale" in spared
    assert "conditioner.table.weight" not in spared


def test_bound_quantiser_is_no_part_of_the_weights():
    _, generator = make()
    assert not any("pyramid" in name for name in generator.state_dict())
    assert not any("pyramid" in name for name, _ in generator.named_parameters())
    fresh = build(generator.config)
    fresh.load_state_dict(generator.state_dict())
    with pytest.raises(UserError, match=r"generator.bind\(tokenizer\)"):
        fresh.score(torch.zeros(1, 85, dtype=torch.long), fresh.conditioner(torch.tensor([0])))


def test_binding_refuses_other_tokenizers():
    _, generator = make()
    other, _ = make({"codes": 32})
    with pytest.raises(SpecError, match="vocabulary 32"):
        generator.bind(other)
    with pytest.raises(IncompatibleError, match="use a multi-scale tokenizer"):
        generator.bind(build(preset("tokenizer", "tiny_vq")))


@pytest.mark.parametrize(
    "segments",
    [
        (Segment((4, 4), (8,), dim=4),),
        (Segment((1, 9), (8,), dim=4), Segment((4, 4), (8,), dim=4)),
        (Segment((2, 2), (8,), dim=4), Segment((4, 4), (16,), dim=4)),
        (Segment((2, 2), (8, 8), dim=4), Segment((4, 4), (8, 8), dim=4)),
    ],
)
def test_codes_that_are_no_pyramid_are_refused(segments):
    config = for_codes(preset("generator", "tiny_var"), CodeSpec("discrete", segments))
    with pytest.raises(IncompatibleError, match="Use a multi-scale tokenizer"):
        build(config)


def test_smooth_scales_mix_code_vectors():
    tokenizer, generator = make()
    pipe = Pipeline(tokenizer, generator)
    # With hardly any temperature a mixture is a single row: a draw by the Gumbel-max rule.
    sharp = pipe([1], n=2, decoder=SmoothScales(temperature=1e-6, floor=1e-6), cfg=2.0)
    torch.testing.assert_close(sharp.images, pipe.decode(sharp.codes), atol=1e-4, rtol=1e-4)
    soft = pipe([1], n=2, decoder=SmoothScales(), cfg=2.0)
    assert (soft.images - pipe.decode(soft.codes)).abs().max() > 1e-3
    other = build(for_codes(preset("generator", "tiny_gpt"), tokenizer.spec, num_classes=10))
    with pytest.raises(IncompatibleError, match="use decoder=sequential"):
        SmoothScales().check(other)


def test_guidance_ramp_leaves_the_first_scale_alone():
    _, generator = make()
    cond = generator.conditioner(torch.tensor([1]))
    guidance = Guidance(3.0, schedule="linear", inclusive=True)
    assert [guidance.weight(k, 4) for k in range(4)] == pytest.approx([1, 1 + 2 / 3, 1 + 4 / 3, 3])
    seen = []
    Sequential()(
        generator,
        cond,
        SamplingContext(
            guidance=guidance,
            filters=Filters(),
            noise=SeededNoise([0]),
            observer=lambda positions, codes, params: seen.append(params),
        ),
    )
    with torch.inference_mode():
        torch.testing.assert_close(seen[0], generator.predict(generator.start(cond)))


def test_known_codes_stay_when_the_rest_is_drawn():
    tokenizer, generator = make()
    codes = tokenizer.encode(torch.rand(1, 3, 16, 16) * 2 - 1)
    positions = torch.tensor([0, 3, 7, 40, 84])
    drawn = Sequential()(
        generator,
        generator.conditioner(torch.tensor([1, 2])),
        SamplingContext(
            guidance=Guidance(),
            filters=Filters(),
            noise=SeededNoise([0, 1]),
            known=(positions, codes[0, positions]),
        ),
    ).codes
    assert torch.equal(drawn[:, positions], codes[:, positions].expand(2, -1))
    assert not torch.equal(drawn[0], drawn[1])


def test_released_files_tell_their_own_sizes():
    parts = released()
    imported = var.import_generator(parts["var_wo_ddp"], source="var.pth")
    generator = imported.build()
    assert isinstance(generator, VAR)
    assert [s.shape for s in generator.spec.segments] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert (len(generator.blocks), generator.heads) == (3, 4)
    whole = {"epoch": 1, "trainer": parts}
    again = var.import_generator(whole, source="ar-ckpt-last.pth")
    assert again.config == imported.config
    scales = [1, 2, 3, 4]
    # Norm groups are not visible in a file; the published 32 do not divide this tiny network.
    config = var.import_tokenizer(whole, source="ar-ckpt-last.pth", scales=scales).config
    assert config["quantizer"] | {"scales": scales} == {
        "_target_": "argen.tokenizers.quantizers.multiscale.MultiScaleVQ",
        "codes": 40,
        "dim": 8,
        "scales": scales,
        "phis": 4,
        "phi_ratio": 0.5,
        "cosine": False,
        "hit_counter": "scale",
    }
    assert config["encoder"]["multipliers"] == [1, 1, 2]
    assert config["encoder"]["blocks"] == 1
    with pytest.raises(UserError, match="draws images of 64 px, not 256: set image_size=64"):
        var.import_generator(parts["var_wo_ddp"], source="var.pth", image_size=256)
    with pytest.raises(CheckpointError, match="not a VAR generator"):
        var.import_generator(parts["vae_local"], source="vae.pth")
    with pytest.raises(CheckpointError, match="not a VAR tokenizer"):
        var.import_tokenizer(parts["var_wo_ddp"], source="var.pth")


def reference_weights(shared, cosine, D=24, H=3, C=5, V=7, L=14, K=3):
    """Return random weights of a one-block VAR under the published keys."""
    torch.manual_seed(1)
    shapes = {
        "class_emb.weight": (4, D),
        "pos_start": (1, 1, D),
        "pos_1LC": (1, L, D),
        "lvl_embed.weight": (K, D),
        "word_embed.weight": (D, C),
        "word_embed.bias": (D,),
        "blocks.0.attn.mat_qkv.weight": (3 * D, D),
        "blocks.0.attn.q_bias": (D,),
        "blocks.0.attn.v_bias": (D,),
        "blocks.0.attn.zero_k_bias": (D,),
        "blocks.0.attn.proj.weight": (D, D),
        "blocks.0.attn.proj.bias": (D,),
        "blocks.0.ffn.fc1.weight": (2 * D, D),
        "blocks.0.ffn.fc1.bias": (2 * D,),
        "blocks.0.ffn.fc2.weight": (D, 2 * D),
        "blocks.0.ffn.fc2.bias": (D,),
        "head_nm.ada_lin.1.weight": (2 * D, D),
        "head_nm.ada_lin.1.bias": (2 * D,),
        "head.weight": (V, D),
        "head.bias": (V,),
    }
    ada = "shared_ada_lin" if shared else "blocks.0.ada_lin"
    shapes |= {f"{ada}.1.weight": (6 * D, D), f"{ada}.1.bias": (6 * D,)}
    if shared:
        shapes["blocks.0.ada_gss"] = (1, 1, 6, D)
    if cosine:
        shapes["blocks.0.attn.scale_mul_1H11"] = (1, H, 1, 1)
    weights = {k: 0.3 * torch.randn(shape) for k, shape in shapes.items()}
    if cosine:  # one head beyond the largest temperature
        weights["blocks.0.attn.scale_mul_1H11"][0, 0] = 6.0
    return weights | {"blocks.0.attn.zero_k_bias": torch.zeros(D)}


def reference_logits(w, label, read, level, cosine, H=3):
    """Write out the published network, one block deep, for one image."""
    c = w["class_emb.weight"][label]
    D = len(c)

    def linear(key, x):
        return x @ w[f"{key}.weight"].T + w[f"{key}.bias"]

    def norm(x):
        return F.layer_norm(x, (D,), eps=1e-6)

    x = torch.cat((c + w["pos_start"][0], linear("word_embed", read)))
    x = x + w["lvl_embed.weight"][level] + w["pos_1LC"][0]
    ada = "shared_ada_lin.1" if "shared_ada_lin.1.weight" in w else "blocks.0.ada_lin.1"
    parts = linear(ada, F.silu(c)).view(6, D) + w.get("blocks.0.ada_gss", torch.zeros(1))[0]
    gamma1, gamma2, scale1, scale2, shift1, shift2 = parts.view(6, D)
    block = {k.removeprefix("blocks.0."): v for k, v in w.items()}
    y = (norm(x) * (1 + scale1) + shift1) @ block["attn.mat_qkv.weight"].T
    y = y + torch.cat((block["attn.q_bias"], torch.zeros(D), block["attn.v_bias"]))
    q, k, v = y.view(-1, 3, H, D // H).permute(1, 2, 0, 3)
    if cosine:
        heat = block["attn.scale_mul_1H11"][0].clamp(max=math.log(100)).exp()
        logits = (F.normalize(q, dim=-1) * heat) @ F.normalize(k, dim=-1).mT
    else:
        logits = 0.25 * (D // H) ** -0.5 * q @ k.mT
    logits = logits.masked_fill(level[None] > level[:, None], -math.inf)
    mixed = (logits.softmax(-1) @ v).transpose(0, 1).flatten(1)
    x = x + linear("blocks.0.attn.proj", mixed) * gamma1
    hidden = F.gelu(linear("blocks.0.ffn.fc1", norm(x) * (1 + scale2) + shift2), approximate="tanh")
    x = x + linear("blocks.0.ffn.fc2", hidden) * gamma2
    scale, shift = linear("head_nm.ada_lin.1", F.silu(c)).view(2, D)
    return linear("head", norm(x) * (1 + scale) + shift)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("cosine", [False, True])
def test_every_form_of_the_published_block(shared, cosine):
    weights = reference_weights(shared, cosine)
    config = {
        "num_classes": 3,
        "embed_dim": 24,
        "depth": 1,
        "num_heads": 3,
        "mlp_ratio": 2.0,
        "shared_aln": shared,
        "attn_l2_norm": cosine,
        "patch_nums": [1, 2, 3],
        "cond_drop_rate": 0.0,
    }
    made = var.generator_config(config, vocab_size=7, code_dim=5)
    generator = Imported(made, var.generator_weights(weights), "x").build()
    quantizer = MultiScaleVQ(7, 5, scales=[1, 2, 3])
    torch.nn.init.normal_(quantizer.codebook.weight)
    tokenizer = torch.nn.Module()
    tokenizer.quantizer, tokenizer.spec = quantizer, generator.spec
    generator.bind(tokenizer)
    codes = torch.randint(7, (1, 14))
    with torch.no_grad():
        cond = generator.conditioner(torch.tensor([2]))
        read, level = quantizer.next_scale_inputs(codes)[0], torch.tensor([0] + [1] * 4 + [2] * 9)
        expected = reference_logits(weights, 2, read, level, cosine)
        torch.testing.assert_close(generator.score(codes, cond)[0], expected, atol=1e-4, rtol=1e-4)
        null = generator.conditioner.null(cond)  # the table has the null class at drop rate 0 too
        expected = reference_logits(weights, 3, read, level, cosine)
        torch.testing.assert_close(generator.score(codes, null)[0], expected, atol=1e-4, rtol=1e-4)


def without(weights, *parts):
    return {k: v for k, v in weights.items() if not any(part in k for part in parts)}


@pytest.mark.parametrize("phis", ["partly shared", "shared", "none"])
@pytest.mark.parametrize("attention", ["both", "middle", "none"])
def test_reference_options_load_strictly(phis, attention):
    weights = released()["vae_local"]
    config = {
        "vocab_size": 40,
        "z_channels": 8,
        "ch": 16,
        "v_patch_nums": [1, 2, 3, 4],
        "hard_coded_in_reference": {
            "ch_mult": [1, 1, 2],
            "num_res_blocks": 1,
            "group_norm_groups": 8,
            "using_sa": attention == "both",
            "using_mid_sa": attention != "none",
        },
    }
    if attention != "both":
        weights = without(weights, ".attn.")
    if attention == "none":
        weights = without(weights, ".attn_1.")
    if phis != "partly shared":
        kept = {k.replace("qresi_ls.0", "qresi"): v for k, v in weights.items() if "ls.0" in k}
        weights = without(weights, "quant_resi") | (kept if phis == "shared" else {})
        config |= {"share_quant_resi": 1} if phis == "shared" else {"quant_resi": 0.0}
    model = Imported(
        var_vqvae.tokenizer_config(config), var_vqvae.tokenizer_weights(weights), "x"
    ).build()
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    assert model.decode(model.encode(images)).shape == images.shape


@pytest.mark.parametrize(
    ("name", "tokenizer", "millions"),
    [
        ("var_d16", "var_vqvae", 310),
        ("var_d20", "var_vqvae", 601),
        ("var_d24", "var_vqvae", 1034),
        ("var_d30", "var_vqvae", 2010),
        ("var_d36_s", "var_vqvae_512", 2354),
    ],
)
def test_published_sizes(name, tokenizer, millions):
    with torch.device("meta"):
        spec = build(preset("tokenizer", tokenizer)).spec
        generator = build(for_codes(preset("generator", name), spec))
    count = sum(p.numel() for p in generator.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.005)
