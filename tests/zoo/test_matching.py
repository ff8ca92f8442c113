"""An imported model is known as the preset it is built as, and keeps the published sampling."""

import shutil

import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from test_convert import HEADS, xar_files

from argen import cli
from argen.build import META, build
from argen.interop import ibq_ar, mar, maskgit, nar, rar, var
from argen.interop.llamagen import llamagen
from argen.pipeline import load
from argen.pipeline.settings import controls, effective
from argen.runtime.presets import config_dir, preset
from argen.zoo.matching import matching, same_arguments
from argen.zoo.meta import card
from argen.zoo.pairs import merged, partner_of, tokenizer_of

GRID = {"block_size": 256, "vocab_size": 16384, "num_classes": 1000}


def nested(model_type, length, **sizes):
    network = {"model_type": model_type, "image_seq_len": length, "condition_num_classes": 1000}
    vq = {"codebook_size": 4096, "token_size": 12}
    return {"model": {"vq_model": vq, "generator": network | sizes}}


# The arguments of published networks as their projects name them, through the importers.
IMPORTED = {
    "var_d16": lambda: var.generator_config(
        {
            **{"embed_dim": 1024, "depth": 16, "num_heads": 16, "num_classes": 1000},
            **{"shared_aln": False, "attn_l2_norm": True, "drop_path_rate": 0.1 * 16 / 24},
            "patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
        },
        vocab_size=4096,
        code_dim=32,
    ),
    "llamagen_b": lambda: llamagen.generator_config(
        {**GRID, "dim": 768, "n_layer": 12, "n_head": 12}
    ),
    "nar_b": lambda: nar.generator_config({**GRID, "dim": 768, "n_layer": 12, "n_head": 12}),
    "ibq_b": lambda: ibq_ar.generator_config(
        {
            "transformer_config": {
                "params": {**GRID, "n_embd": 1024, "n_layer": 16, "n_head": 16, "alng": 1e-5}
            }
        }
    ),
    "rar_l": lambda: rar.generator_config(
        {
            "model": {
                "vq_model": {"codebook_size": 1024, "token_size": 256},
                "generator": {
                    **{"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
                    **{"intermediate_size": 4096, "image_seq_len": 256},
                    "condition_num_classes": 1000,
                },
            }
        }
    ),
    "mar_b": lambda: mar.generator_config(
        {
            **{"img_size": 256, "encoder_embed_dim": 768, "decoder_embed_dim": 768},
            **{"encoder_depth": 12, "decoder_depth": 12, "norm_layer": "LayerNorm(eps=1e-06)"},
            **{"encoder_num_heads": 12, "decoder_num_heads": 12},
            **{"diffloss_w": 1024, "diffloss_d": 6},
        }
    ),
    "maskgit_titok_b64": lambda: maskgit.generator_config(
        nested("ViT", 64, hidden_size=768, num_hidden_layers=24, num_attention_heads=16)
    ),
}


def imported(name):
    """Return what an importer would build, on no device, and its tokenizer."""
    with torch.device("meta"):
        return build(IMPORTED[name]()), partner_of(name)


@pytest.mark.parametrize("name", IMPORTED)
def test_published_models_are_known(name):
    names, meta = matching(*imported(name))
    assert names == [name]
    assert meta == card("generator", name)
    assert meta.settings


@pytest.mark.parametrize(
    "changes",
    [
        {"num_heads": 8},  # invisible in the weights
        {"depth": 15},
        {"num_classes": 10},
        {"attn_l2_norm": False},
    ],
)
def test_a_model_of_other_arguments_is_not(changes):
    arguments = {
        **{"embed_dim": 1024, "depth": 16, "num_heads": 16, "num_classes": 1000},
        **{"shared_aln": False, "attn_l2_norm": True},
        "patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
    }
    config = var.generator_config({**arguments, **changes}, vocab_size=4096, code_dim=32)
    with torch.device("meta"):
        generator = build(config)
    assert matching(generator, tokenizer_of("var_vqvae")) is None


def test_equal_generators_are_told_apart_by_their_tokenizers():
    config = maskgit.generator_config(
        nested("ViT", 256, hidden_size=768, num_hidden_layers=24, num_attention_heads=16)
    )
    with torch.device("meta"):
        generator = build(config)
    for size in "sbl":
        names, meta = matching(generator, tokenizer_of(f"one_d_piece_{size}256"))
        assert names == [f"maskgit_one_d_piece_{size}256"]
        assert meta.settings["cfg"] == {"s": 12.5, "b": 8.5, "l": 5.5}[size]


def test_arguments_are_compared_where_both_state_them():
    ours = {"_target_": "a.B", "dim": 4, "split": [6, 12], "deep": {"x": 1.0}, "dropout": 0.1}
    assert same_arguments(ours, {**ours, "more": 3, "dropout": 0.0})
    assert same_arguments(ours, {"_target_": "a.B", "split": (6, 12), "deep": {"x": 1}})
    assert not same_arguments(ours, {**ours, "_target_": "a.C"})
    assert not same_arguments(ours, {**ours, "dim": 5})
    assert not same_arguments(ours, {**ours, "split": [6]})
    assert not same_arguments(ours, {**ours, "deep": {"x": 1.1}})
    assert not same_arguments(ours, {**ours, "deep": None})
    assert merged(ours, {"deep": {"y": 2}})["deep"] == {"x": 1.0, "y": 2}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Add a published preset of a tiny size to a copy of the configs."""
    copied = shutil.copytree(config_dir(), tmp_path / "configs")
    config = preset("generator", "tiny_xar")
    config["conditioner"]["num_classes"] = 5
    meta = yaml.safe_load((copied / "generator" / "xar_b.yaml").read_text())[META]
    config[META] = meta | {"sampling": {"cfg": 3.0, "cfg_schedule": "linear"}, "expected": []}
    path = copied / "generator" / "somebody_b.yaml"
    path.write_text(yaml.safe_dump(config))
    for module in ("configs", "zoo.meta", "zoo.checks"):
        monkeypatch.setattr(f"argen.{module}.config_dir", lambda: copied)
    return path


def converted(tmp_path, monkeypatch, capsys):
    """Convert a tiny xAR; returns what was printed and the model."""
    ckpt, tokenizer, side = xar_files(tmp_path, None)
    out = tmp_path / "model"
    words = ["source=xar", f"ckpt={ckpt}", f"tokenizer_ckpt={tokenizer}", f"out={out}"]
    words += [f"image_size={side}", f"+options.heads={HEADS['xar']}"]
    monkeypatch.setattr("sys.argv", ["argen", "convert", *words])
    GlobalHydra.instance().clear()
    cli.main()
    return capsys.readouterr().out, load(out)


def test_convert_keeps_the_published_sampling(stand_in, tmp_path, monkeypatch, capsys):
    told, pipe = converted(tmp_path, monkeypatch, capsys)
    assert "built as somebody_b: sampled with cfg=3.0 cfg_schedule=linear" in told
    assert pipe.defaults == {"cfg": 3.0, "cfg_schedule": "linear"}
    assert pipe.provenance["preset"] == "somebody_b"
    torch.manual_seed(0)
    with torch.no_grad():  # conditions reach the output through gates that start at zero
        for parameter in pipe.generator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    by_default = pipe([1], n=2, seed=0).codes
    typed = pipe([1], n=2, seed=0, cfg=3.0, cfg_schedule="linear").codes
    plain = pipe([1], n=2, seed=0, cfg=1.0).codes
    assert torch.equal(by_default, typed)
    assert not torch.equal(by_default, plain)
    pipe.defaults = {}
    assert torch.equal(plain, pipe([1], n=2, seed=0).codes)
    assert not torch.equal(by_default, pipe([1], n=2, seed=0).codes)


def test_a_model_that_is_no_preset_says_so(tmp_path, monkeypatch, capsys):
    told, pipe = converted(tmp_path, monkeypatch, capsys)
    assert "no published preset is built like this" in told
    assert pipe.defaults == {}
    assert "preset" not in pipe.provenance


def test_what_is_typed_wins_over_what_a_model_keeps():
    kept = {"cfg_sub_tokens": [1.9, 2.0], "sub_tokens": [{"temperature": 1.1}, {}], "top_k": 5}
    guidance, filters = controls({}, kept)
    assert guidance.sub_tokens == (1.9, 2.0)
    assert filters.sub_tokens[0].temperature == 1.1
    guidance, filters = controls({"cfg": 1.0, "temperature": 0.9, "top_p": None}, kept)
    assert not guidance.active
    assert guidance.sub_tokens == ()
    assert filters.sub_tokens == ()
    assert (filters.temperature, filters.top_k) == (0.9, 5)
    rising = {"cfg": 2.5, "cfg_schedule": "linear", "cfg_inclusive": True, "top_k": 900}
    assert controls({"cfg": [1.0, 2.0]}, rising)[0].scale == (1.0, 2.0)
    assert not controls({"cfg": 1.0}, rising)[0].active
    assert effective({"top_k": 0, "cfg": None}, rising) == {**rising, "top_k": 0}
