"""MAR and xAR checkpoints: sizes are read off the weights, wrapping keys and the EMA copy found."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from argen.build import build
from argen.errors import CheckpointError, UserError
from argen.interop import mar, xar
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment

GOLDEN = Path(__file__).parents[1] / "golden"


def test_mar_sizes_are_read_off_the_weights():
    weights = load_file(str(GOLDEN / "mar" / "weights.safetensors"))
    other = {k: torch.zeros_like(v) for k, v in weights.items()}
    imported = mar.import_generator(
        {"model": other, "model_ema": weights, "epoch": 3}, source="last.pth", heads=4
    )
    model = imported.build()
    assert model.spec.grid == (4, 4)
    assert (model.spec.dim, model.buffer, len(model.network.encoder_blocks)) == (4, 5, 2)
    table = model.conditioner.table.weight
    torch.testing.assert_close(table[-1:], weights["fake_latent"])  # the averaged copy
    torch.testing.assert_close(table[:-1], weights["class_emb.weight"])
    assert model.conditioner.has_null
    with pytest.raises(UserError, match="heads=N"):
        mar.import_generator(weights, source="last.pth")
    with pytest.raises(CheckpointError, match="not a MAR"):
        mar.import_generator({"a": torch.zeros(1)}, source="last.pth")


def test_mar_norms_have_the_epsilon_of_the_card():
    assert mar.norm_eps("LayerNorm(eps=1e-06)") == 1e-6
    assert mar.norm_eps("LayerNorm") == 1e-5
    assert mar.norm_eps(None) == 1e-5


def reference_xar(model):
    """Return a model's weights under the published keys, modulation in their order."""
    found = {}
    pairs = (
        ("network.", ""),
        ("conditioner.table.", "class_emb."),
        ("time.fc1.", "time_embed.mlp.0."),
        ("time.fc2.", "time_embed.mlp.2."),
        ("second_input.", "decoder_embed."),
        ("first_positions", "encoder_pos_embed_learned"),
        ("second_positions", "decoder_pos_embed_learned"),
        ("first_", "encoder_"),
        ("second_", "decoder_"),
        (".attention.qkv.", ".attn.qkv."),
        (".attention.out.", ".attn.proj."),
        (".ffn.gate.", ".mlp.fc1_g."),
        (".ffn.up.", ".mlp.fc1_x."),
        (".ffn.out.", ".mlp.fc2."),
        ("input_norm.", "z_proj_ln."),
    )
    for key, value in model.state_dict().items():
        name = key
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        if name.startswith("input."):
            name = name.replace("input.", "z_proj.")
        if name.startswith("out."):
            name = name.replace("out.", "pred.")
        if ".modulation.proj." in name:
            shift1, scale1, gate1, shift2, scale2, gate2 = value.chunk(6)
            value = torch.cat((gate1, gate2, scale1, scale2, shift1, shift2))
            name = name.replace(".modulation.proj.", ".ada_lin.1.")
        found[name] = value
    found["encoder_blocks.0.attn.rope.freqs"] = torch.zeros(2)
    found["encoder_blocks.0.attn.rope.freqs_cos"] = torch.zeros(16, 8)
    return found


@pytest.mark.parametrize("wrapped", [False, True])
def test_xar_sizes_are_read_off_the_weights(wrapped):
    spec = CodeSpec("continuous", (Segment((4, 4), dim=3),))
    config = for_codes(preset("generator", "tiny_xar"), spec, num_classes=5)
    torch.manual_seed(0)
    model = build({**config, "entity_size": 2, "second_depth": 1}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    weights = reference_xar(model)
    cell = torch.arange(16) // 4
    hidden = cell[None] > cell[:, None]
    weights["mask"] = torch.zeros(1, 1, 16, 16).masked_fill(hidden, float("-inf"))
    checkpoint = {"model": {}, "model_ema": weights} if wrapped else weights
    made = xar.import_generator(checkpoint, source="xAR-B.pth", heads=4).build()
    assert made.spec == spec
    assert made.plan == model.plan
    codes, cond = torch.randn(2, 16, 3), model.conditioner(torch.tensor([0, 4]))
    x = torch.randn(2, 16, 3)
    with torch.no_grad():
        torch.testing.assert_close(
            made.score(codes, made.conditioner(torch.tensor([0, 4])))(x, 0.3),
            model.score(codes, cond)(x, 0.3),
        )
    with pytest.raises(UserError, match="heads=N"):
        xar.import_generator(weights, source="xAR-B.pth")
    with pytest.raises(CheckpointError, match="not an xAR"):
        xar.import_generator({"a": torch.zeros(1)}, source="xAR-B.pth")
    with pytest.raises(UserError, match="equally wide"):
        xar.generator_config({"encoder_embed_dim": 64, "decoder_embed_dim": 32})
