"""Released files of next-token generators: sizes are read off the weights, wrong files refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from argen.errors import CheckpointError, UserError
from argen.generators.net2net.orders import grid_order
from argen.interop import ibq, net2net, open_magvit2, open_magvit2_ar, rar, wetok
from argen.interop.taming import tokenizer as taming
from argen.pipeline import Pipeline

GOLDEN = Path(__file__).parents[1] / "golden"


def recorded(name):
    """Return the weights of a recorded run and its configuration."""
    weights = load_file(str(GOLDEN / name / "weights.safetensors"))
    return weights, json.loads((GOLDEN / name / "card.json").read_text())["config"]


def same(found, expected):
    """Compare what two configurations build, dropout and initialisation aside."""
    training = ("dropout", "drop_path", "init_std", "anneal", "multiple_of", "ffn_")
    # No number of key/value heads means as many as queries.
    found, expected = (
        {"kv_heads": c.get("heads")} | {k: v for k, v in c.items() if v is not None}
        for c in (found, expected)
    )
    for key in {*found, *expected}:
        if not any(word in key for word in training):
            assert found.get(key) == expected.get(key), key


def test_rar():
    weights, config = recorded("rar")
    imported = rar.import_generator(weights, source="file", image_size=64)
    same(imported.config, rar.generator_config(config))
    line = rar.import_generator(weights, source="file", image_size=256).config["spec"]
    assert line["segments"][0]["shape"] == [1, 16]
    model = imported.build()
    assert model.positions.shape[0] == 16 + 1024
    with pytest.raises(CheckpointError, match="target_aware"):
        rar.import_generator({"lm_head.weight": torch.zeros(2, 2)}, source="file")


@pytest.mark.parametrize("name", ["open-magvit2-ar", "wetok-ar"])
def test_open_magvit2_and_wetok(name):
    weights, config = recorded(name)
    found = open_magvit2_ar.import_generator(
        {"state_dict": weights, "epoch": 3}, source="file", image_size=8, factor=2, heads=2
    )
    same(found.config, open_magvit2_ar.generator_config(config))
    model, labels = found.build(), torch.tensor([1])
    codes = torch.stack(
        [torch.randint(v, (1, 16)) for v in model.spec.segments[0].vocab_sizes], dim=-1
    )
    assert model.loss(codes, model.conditioner(labels)).loss.isfinite()
    with pytest.raises(UserError, match="heads=N"):
        open_magvit2_ar.import_generator(weights, source="file")
    with pytest.raises(CheckpointError, match="inter and intra"):
        open_magvit2_ar.import_generator({"a": torch.zeros(1)}, source="file")


@pytest.mark.parametrize(
    ("name", "importer", "heads"),
    [
        ("open-magvit2-ar", open_magvit2, 2),
        ("wetok-ar", wetok, 2),
        ("ibq-ar", ibq, 2),
        ("taming-net2net", taming, 4),
    ],
)
def test_a_generators_file_holds_its_tokenizer(name, importer, heads):
    weights, _ = recorded(name)
    options = {"image_size": 8}
    grouped = {"group_bits": 4} if importer is wetok else {}
    size = {"ids": 10} if importer is taming else {}
    pipe = Pipeline(
        tokenizer=importer.import_tokenizer(weights, source="file", **options, **grouped).build(),
        generator=importer.import_generator(
            weights, source="file", factor=2, heads=heads, **options, **size
        ).build(),
    )
    samples = pipe([1, 4], n=1, temperature=0.5)
    assert samples.images.shape == (2, 3, 8, 8)
    pipe.tokenizer.spec.check(samples.codes)


def test_net2net_reads_order_and_mask_off_the_file():
    weights, config = recorded("taming-net2net")
    plain = net2net.import_generator(
        {"state_dict": weights}, source="file", image_size=8, factor=2, heads=4, ids=10
    )
    condition = net2net.condition_of(config)
    same(plain.config, net2net.generator_config(config, condition, grid=(4, 4)))
    order = torch.tensor(grid_order("spiral_in", (4, 4)))
    weights["permuter.forward_shuffle_idx"] = order
    weights["permuter.backward_shuffle_idx"] = order.argsort()
    for i in range(2):
        weights[f"transformer.blocks.{i}.attn.mask"][..., :3, :3] = 1
    found = net2net.import_generator(
        {"state_dict": weights}, source="file", image_size=8, factor=2, heads=4, condition="start"
    )
    assert found.config["order"] == "spiral_in"
    assert found.config["unmasked"] == 3
    model = found.build()
    assert [p for group in model.plan.groups for p in group] == order.tolist()
    assert torch.equal(model.conditioner.token, weights["transformer.tok_emb.weight"][0])
    weights["permuter.forward_shuffle_idx"] = torch.randperm(16)
    listed = net2net.import_generator(
        weights, source="file", image_size=8, factor=2, heads=4, condition="start"
    )
    assert listed.config["order"] == weights["permuter.forward_shuffle_idx"].tolist()


@pytest.mark.parametrize("name", [*net2net.PERMUTERS])
def test_permuters_by_name(name):
    _, config = recorded("taming-net2net")
    config["permuter_config"] = {
        "target": f"taming.modules.transformer.permuter.{name}",
        "params": {} if name == "Identity" else {"H": 4, "W": 4},
    }
    built = net2net.generator_config(config, net2net.condition_of(config), grid=(4, 4))
    assert built["order"] == net2net.PERMUTERS[name]
    if name != "Identity":
        with pytest.raises(UserError, match="grid"):
            net2net.generator_config(config, net2net.condition_of(config), grid=(4, 8))


def test_net2net_conditions_copy_the_rows_of_the_codes():
    weights, config = recorded("taming-net2net")
    table = weights["transformer.tok_emb.weight"]
    stages = {
        "class": {"target": "taming.modules.util.Labelator", "params": {"n_classes": 7}},
        "start": {"target": "taming.modules.util.SOSProvider", "params": {"sos_token": 5}},
        "tokens": {"target": "taming.models.vqgan.VQModel", "params": {}},
    }
    for kind, stage in stages.items():
        condition = net2net.condition_of({**config, "cond_stage_config": stage}, length=2)
        assert condition.kind == kind
        rows = net2net.generator_weights(weights, condition)
        if kind == "start":
            assert torch.equal(rows["conditioner.token"], table[5])
        else:
            count = 7 if kind == "class" else 64
            assert torch.equal(rows["conditioner.table.weight"], table[:count])
    unconditional = {**config, "cond_stage_config": "__is_unconditional__", "sos_token": 2}
    assert net2net.condition_of(unconditional).ids == 2
    with pytest.raises(CheckpointError, match="Net2Net"):
        net2net.import_generator({"a": torch.zeros(1)}, source="file")
    with pytest.raises(UserError, match="Unknown permuter"):
        net2net.generator_config(
            {**config, "permuter_config": {"target": "x.Zigzag"}},
            net2net.condition_of(config),
            grid=(4, 4),
        )
