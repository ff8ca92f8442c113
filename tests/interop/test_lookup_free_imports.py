"""Checkpoints of Open-MAGVIT2, WeTok and IBQ: sizes are read off, averaged copies are found."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from argen.errors import CheckpointError, UserError
from argen.interop import ibq, open_magvit2, wetok
from argen.tokenizers.generative import GenerativeDecoder

GOLDEN = Path(__file__).parents[1] / "golden"


def weights_of(name):
    return load_file(str(GOLDEN / name / "weights.safetensors"))


def with_copies(weights, scale=2.0):
    """Add averaged copies as the reference's file has them: no dots in their names."""
    copies = {f"model_ema.{k.replace('.', '')}": v * scale for k, v in weights.items()}
    extra = {
        "model_ema.decay": torch.tensor(0.999),
        "model_ema.num_updates": torch.tensor(7),
        "loss.discriminator.main.0.weight": torch.zeros(1),
    }
    return {**weights, **copies, **extra}


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("wetok-gan", lambda c: wetok.import_tokenizer(c, source="x", group_bits=4)),
        ("wetok-gan", lambda c: open_magvit2.import_tokenizer(c, source="x")),
        ("ibq", lambda c: ibq.import_tokenizer(c, source="x")),
    ],
)
def test_sizes_are_read_off_and_copies_preferred(name, read):
    plain = weights_of(name)
    bare = read(plain)
    bare.build()
    averaged = read({"state_dict": with_copies(plain), "epoch": 3})
    assert bare.config == averaged.config
    model = averaged.build()
    for key, value in bare.weights.items():
        torch.testing.assert_close(averaged.weights[key], value * 2.0)
    torch.testing.assert_close(
        model.encoder.conv_in.weight.detach(), plain["encoder.conv_in.weight"] * 2
    )


def test_a_wetok_file_shows_its_decoder_and_takes_its_groups():
    imported = wetok.import_tokenizer(weights_of("wetok-gan"), source="x", group_bits=4)
    model = imported.build()
    assert isinstance(model.decoder, GenerativeDecoder)
    assert model.spec.segments[0].vocab_sizes == (16, 16)
    with pytest.raises(UserError, match="no multiple of group_bits=3"):
        wetok.import_tokenizer(weights_of("wetok-gan"), source="x", group_bits=3)


def test_factorised_tokens_cut_the_same_bits():
    config = {
        "ddconfig": {"z_channels": 12, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1},
        "n_embed": 16,
        "embed_dim": 12,
        "num_codebooks": 3,
        "use_GFQ": True,
        "token_factorization": True,
        "factorized_bits": [2, 4, 6],
    }
    made = wetok.tokenizer_config(config, image_size=16)
    assert made["quantizer"]["split"] == [2, 4, 6]
    assert made["quantizer"]["groups"] == 3
    with pytest.raises(UserError, match="use_GFQ"):
        wetok.tokenizer_config({**config, "use_GFQ": False}, image_size=16)
    with pytest.raises(UserError, match=r"n_embed 8 is not 2\^4"):
        wetok.tokenizer_config({**config, "n_embed": 8}, image_size=16)


def test_a_generators_file_carries_the_tokenizer_along():
    plain = weights_of("wetok-gan")
    carried = {f"first_stage_model.{k}": v for k, v in plain.items()}
    carried["transformer.head.weight"] = torch.zeros(2)
    imported = open_magvit2.import_tokenizer({"state_dict": carried}, source="x", split=[3, 5])
    assert imported.build().spec.segments[0].vocab_sizes == (8, 32)


def test_a_missing_copy_is_named():
    weights = with_copies(weights_of("wetok-gan"))
    del weights["model_ema.decoderconv_inbias"]
    with pytest.raises(CheckpointError, match=r"1 weights \(decoder\.conv_in\.bias\)"):
        open_magvit2.import_tokenizer(weights, source="x")


def test_other_files_are_refused():
    with pytest.raises(CheckpointError, match="no mid_block"):
        open_magvit2.import_tokenizer(weights_of("ibq"), source="x")
    strange = {**weights_of("wetok-gan"), "encoder.extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"encoder\.extra"):
        wetok.import_tokenizer(strange, source="x", group_bits=4)
