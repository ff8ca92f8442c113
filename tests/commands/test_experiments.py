"""Every published recipe composes, is read to the last key, builds, and trains.

Networks are built whole on the meta device. Trained is a copy of the recipe shrunk to tiny: widths,
layers and images small, everything else (data and augmentation, codes, optimiser, schedule,
objective, sampling) as it stands.
"""

from __future__ import annotations

import inspect
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from argen.build import build, locate
from argen.pipeline import Pipeline
from argen.pipeline.settings import controls
from argen.recipes.two_stage import Recipe
from argen.runtime.files import read_json
from argen.runtime.presets import config_dir, for_codes, preset, preset_names
from argen.runtime.stage_settings import stage_settings
from argen.training.fit import FitSettings
from argen.training.optim import Optim

OWN = ("tiny_", "small_", "quickstart_", "emoji_")
PLACES = "imagenet128 imagenet256 imagenet384 imagenet512 openimages256 web256 lsun256 laion256"
ROOT = config_dir() / "experiment"
FILES = [
    path
    for place in [*PLACES.split(), "celebahq256", "ffhq256"]
    for path in sorted((ROOT / place).glob("*.yaml"))
]
RECIPES = [f"{path.parent.name}/{path.stem}" for path in FILES if not path.stem.startswith("_")]
# Published presets without a recipe, and why.
WITHOUT = {
    "var_vqvae_512": "var_vqvae's weights at another size",
    "var_vqvae_1024": "likewise",
    "net2net_drin": "conditions that are codes of a second tokenizer are in no data set here",
    "net2net_faceshq": "likewise",
    "net2net_sflckr": "likewise",
    **{
        f"ta_titok_{name}": "captions do not reach tokenizers in training"
        for name in ("bl32_vq", "bl64_vq", "bl128_vq", "bl32_vae", "bl64_vae", "sl128_vae")
    },
}
# One of every family and kind for the ordinary run; text needs an encoder's weights.
FEW = [
    "imagenet256/llamagen_vq16",
    "imagenet256/taming_f16_1024",
    "imagenet256/kl16",
    "imagenet256/vavae_f16d32",
    "imagenet256/titok_s128_stage1",
    "imagenet256/titok_bl64_vae",
    "imagenet256/open_magvit2_f16",
    "imagenet256/wetok_imagenet_f16",
    "lsun256/binary_ae_64",
    "imagenet256/llamagen_b",
    "imagenet256/nar_b",
    "imagenet256/rar_b",
    "imagenet256/var_d16",
    "imagenet256/open_magvit2_b",
    "imagenet256/wetok_b",
    "imagenet256/elm_b",
    "imagenet256/ibq_xxl",
    "imagenet256/mar_b",
    "imagenet256/xar_b",
    "imagenet256/maskgit_titok_s128",
    "imagenet256/maskgit_one_d_piece_b256",
    "imagenet256/net2net_imagenet",
    "ffhq256/net2net_ffhq",
]
TRAINED = [name for name in RECIPES if not name.startswith("laion256")]


def marked(names):
    """Leave all but one of each family to FULL=1."""
    return [n if n in FEW else pytest.param(n, marks=pytest.mark.full) for n in names]


@pytest.fixture(scope="module")
def composed():
    """Return a recipe's configuration by its name, and a place for images."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):

        def settings(name: str, *words: str):
            key = "urls" if name.startswith("laion256") else "path"
            given = [f"experiment={name}", f"data.{key}=DIR", *words]
            given += ["text_encoder.path=T5"] if name.startswith("laion256") else []
            return compose("train", overrides=given)

        yield settings
    GlobalHydra.instance().clear()


def plain(config):
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def test_every_published_preset_has_a_recipe():
    names = {name.partition("/")[2] for name in RECIPES}
    for group in ("tokenizer", "generator"):
        for name in preset_names(group):
            if not name.startswith(OWN):
                assert (name in names) != (name in WITHOUT), f"{group} {name}"
    assert not set(WITHOUT) - {*preset_names("tokenizer"), *preset_names("generator")}


def commands(name):
    text = (ROOT / f"{name}.yaml").read_text()
    return [line.removeprefix("#").strip() for line in re.findall(r"^# +python -m .*$", text, re.M)]


@pytest.mark.parametrize("name", marked(RECIPES))
def test_recipe_is_read_and_builds(composed, name):
    config = plain(composed(name))
    stage = config["stage"]
    assert stage in ("tokenizer", "generator")
    takes = inspect.signature(locate(config["data"]["_target_"], trust=True)).parameters
    assert set(config["data"]) - {"_target_"} == set(takes)
    assert config["data"]["image_size"] == int(re.search(r"\d+", name.partition("/")[0])[0])
    known = {field.name for field in fields(FitSettings)} - {"trainer", "logger", "callbacks"}
    assert set(config["fit"]) == known
    assert config["fit"]["global_batch"] is not None
    optim = build(config["optim"], trust=True)
    assert isinstance(optim, Optim)
    steps = config["fit"]["steps"]
    if config["fit"]["epochs"]:  # of ImageNet, the smallest of these sets of its kind
        steps = round(config["fit"]["epochs"] * (1_281_167 // config["fit"]["global_batch"]))
    optim.check(steps)
    assert max(optim.factor(step, steps) for step in range(0, steps, max(1, steps // 500))) == 1.0
    controls({k: v for k, v in config["samples"].items() if k != "per_class"})
    takes = inspect.signature(locate(config["objective"]["_target_"], trust=True)).parameters
    assert set(config["objective"]) - {"_target_"} <= set(takes)
    with torch.device("meta"):
        tokenizer = build(config["tokenizer"], trust=True)
        assert all(p.is_meta for p in tokenizer.parameters())
        if stage == "generator":
            generator = build(
                for_codes(config["generator"], tokenizer.spec, num_classes=1000), trust=True
            )
            generator.bind(tokenizer)
            assert all(p.is_meta for p in generator.parameters())
    train, *others = commands(name)
    assert f"experiment={name} " in train
    for line in others:
        assert f"model=outputs/{config['name']}/" in line
    for line in (train, *others):
        words = shlex.split(line)
        compose(words[2].removeprefix("argen."), overrides=words[3:])


SMALL = {
    "channels": 8, "blocks": 1, "middle_blocks": 1, "codes": 32, "proxy_codes": 32, "dim": 32,
    "layers": 1, "depth": 1, "heads": 2, "latents": 8, "head_width": 16, "head_depth": 1,
    "ffn_hidden": 64, "buffer": 4, "entity_size": 1, "repeats": 1, "sampling_steps": 4,
    "intra_layers": 1, "norm_groups": 4,
}  # fmt: skip


def smaller(node, *, quantizer=False):
    """Return a network's configuration with its widths, depths and code books tiny."""
    if isinstance(node, list):
        return [smaller(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {}
    cnn = str(node.get("_target_", "")).endswith((".Encoder", ".Decoder", ".GenerativeDecoder"))
    for key, value in node.items():
        if key == "intra_layers" and value == 0:
            made[key] = 0  # ELM has none
        elif key in SMALL and not (quantizer and key == "dim") and value is not None:
            made[key] = str(SMALL[key]) if isinstance(value, str) else SMALL[key]
        elif key == "multipliers":
            made[key] = [1] * len(value)
        elif key == "scales":
            made[key] = [1, 2]
        else:
            made[key] = smaller(value, quantizer=key in ("quantizer", "proxy_quantizer"))
    if str(node.get("_target_", "")).endswith(".MaskGITUViT"):
        made["layers"] = 2  # half in and half out
    if str(node.get("_target_", "")).endswith(".BlurDiscriminator"):
        made["norm_groups"] = 4
    if cnn:
        made["norm_groups"] = 4
    if "patch" in made:  # a transformer of patches
        made["layers"] = 1
    return made


def small_tokenizer(config):
    """Return a tokenizer's configuration at 32 pixels (64 where it divides them by 32)."""
    made = smaller(config)
    made["image_size"] = 32 if len(made.get("encoder", {}).get("multipliers", [])) < 6 else 64
    for part in (made["encoder"], made["decoder"]):
        if "image_size" in part:
            part["image_size"] = made["image_size"]
    quantizer = made["quantizer"]
    if "bits" in quantizer and not quantizer.get("groups") and "lfq" in quantizer["_target_"]:
        quantizer["bits"] = made["encoder"]["out_channels"] = made["decoder"]["in_channels"] = 8
        if quantizer.get("split"):
            quantizer["split"] = [4, 4]
    return made


def small_objective(config):
    """Return an objective whose discriminator is tiny and there from the start."""
    made = dict(config)
    if "discriminator" in made:
        made["discriminator_start"], made["adversarial_warmup"] = 0, 0
        made.pop("adversarial_start", None)
        if "Patch" in made["discriminator"]["_target_"]:
            made["discriminator"] = {**made["discriminator"], "channels": 8, "layers": 1}
        else:
            made["discriminator"] = smaller(made["discriminator"])
    if "convnext" in made.get("image_terms", {}):  # its weights are in no package
        made["image_terms"] = {k: v for k, v in made["image_terms"].items() if k != "convnext"}
        made["weights"] = {k: v for k, v in made["weights"].items() if k != "convnext"}
    return made


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of two classes of bundled emoji."""
    from PIL import Image

    place = tmp_path_factory.mktemp("images")
    source = build(preset("data", "emoji_quickstart") | {"image_size": 72}, trust=True)
    for label in (0, 1):
        (place / f"class{label}").mkdir()
        for number, index in enumerate((source.train.labels == label).nonzero()[:6, 0].tolist()):
            pixels = source.train.pixels(index).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(place / f"class{label}" / f"{number}.png")
    return place


def train_two_steps(config, images: Path, place: Path) -> dict:
    """Train the shrunk recipe; returns the metrics that it wrote."""
    tokenizer = small_tokenizer(plain(config.tokenizer))
    config.tokenizer = tokenizer
    config.generator = smaller(plain(config.generator))
    config.objective = small_objective(plain(config.objective))
    config.data.path, config.data.image_size = str(images), tokenizer["image_size"]
    config.out, config.name = str(place), "run"
    config.trainer.accelerator, config.trainer.log_every_n_steps = "cpu", 1
    wanted = config.fit.global_batch
    assert wanted >= 8
    config.fit.update({"steps": 2, "epochs": None, "global_batch": 4, "workers": 0, "val_every": 2})
    config.codes.workers = 0
    config.samples.top_k = min(config.samples.top_k, 8)
    if (
        config.stage == "generator"
        or tokenizer.get("second_stage")
        or "SecondStage" in str(tokenizer)
    ):
        starts = dict(tokenizer)
        if tokenizer.get("second_stage"):  # it begins as a first stage did
            starts = tokenizer
        elif "SecondStage" in tokenizer["_target_"]:
            starts["_target_"] = "argen.tokenizers.cnn.CNNTokenizer"
        torch.manual_seed(0)
        Pipeline(tokenizer=build(starts, trust=True), class_names=("class0", "class1")).save(
            place / "start"
        )
        if config.stage == "generator":
            config.model = str(place / "start")
        else:
            config.init.model = str(place / "start")
    if tokenizer.get("proxy") and "encoder" in tokenizer["proxy"]:
        proxy = small_tokenizer(preset("tokenizer", "maskgit_vqgan"))
        proxy |= {part: tokenizer["proxy"][part] for part in ("encoder", "decoder", "quantizer")}
        Pipeline(tokenizer=build(proxy, trust=True), class_names=("class0", "class1")).save(
            place / "proxy"
        )
        config.init.proxy = str(place / "proxy")
    stages = {name: plain(stage_settings(config, name, ())) for name in config.stages}
    run = Recipe(plain(config), stages).run()
    losses = (run / config.stage / "logs" / "metrics.csv").read_text().splitlines()
    assert any(line.split(",") for line in losses[1:])
    folder = run / "tokenizer" if config.stage == "tokenizer" else run
    return read_json(folder / "metrics.json")


@pytest.mark.parametrize("name", marked(TRAINED))
def test_recipe_trains(composed, images, tmp_path, name):
    metrics = train_two_steps(composed(name), images, tmp_path)
    assert metrics["psnr_heldout_db"] > 0


def test_the_few_are_there():
    assert set(FEW) <= set(TRAINED)
