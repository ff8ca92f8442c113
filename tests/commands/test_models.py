"""`argen models` lists the published systems, shows one, and prints commands that exist."""

import shlex
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from argen import cli, models
from argen.errors import UserError
from argen.interop.find import find_importer
from argen.runtime.presets import config_dir
from argen.zoo.card import commands, tokenizer_weights
from argen.zoo.meta import GROUPS, card, find, published

# The first preset of every family and group, and those with something of their own.
SHOWN = {
    (group, meta.family): name for group in GROUPS for name, meta in reversed(published(group))
}
NAMES = sorted({*SHOWN.values(), "var_d36_s", "llamagen_3b", "llamagen_t2i_xl", "net2net_ffhq"})


def listed(*words):
    """Return the names in a list."""
    lines = list(models.lines(words))
    return {line.split()[0] for line in lines[1:-1] if line.startswith("  ")}


def test_a_family_is_listed_with_its_tokenizers():
    lines = list(models.lines(["family=var"]))
    assert lines[0].split() == ["name", "kind", "size", "codes", "weights", "best", "score"]
    assert lines[1] == "VAR"
    assert listed("family=var") == {
        name for group in GROUPS for name, meta in published(group) if meta.family == "VAR"
    }
    line = next(line for line in lines if line.startswith("  var_d16 "))
    assert "discrete generator" in line
    assert "310M" in line
    assert "680 in 10 scales of 4,096" in line
    assert "MIT" in line
    assert line.endswith("FID 3.3")


def test_filters_narrow_the_list():
    both = listed("family=mar", "kind=continuous")
    assert both == {"kl16", "mar_b", "mar_l", "mar_h"}
    assert listed("family=mar", "kind=generator") == {"mar_b", "mar_l", "mar_h"}
    assert listed("family=mar", "max_parameters=300M") == {"kl16", "mar_b"}
    assert listed("family=llamagen", "licence=mit", "max_parameters=0.2B") == {
        *("llamagen_vq8", "llamagen_vq16", "llamagen_b"),
    }
    assert listed("family=one-d-piece", "licence=none released") >= {"one_d_piece_s256_stage1"}
    assert listed("family=elm", "kind=binary") == {
        name for name, meta in published("generator") if meta.family == "ELM"
    }
    nothing = list(models.lines(["family=var", "kind=binary"]))
    assert nothing == ["No published model is like that; leave out a filter."]


@pytest.mark.parametrize(
    ("word", "value"), [("350M", 3.5e8), ("1.5B", 1.5e9), ("86_000", 86e3), ("12k", 12e3)]
)
def test_numbers_as_people_write_them(word, value):
    assert models.number(word) == value


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["var_d61"], "Did you mean 'var_d16'"),
        (["tiny_var"], "no published model 'tiny_var'"),
        (["famly=VAR"], "Unknown filter 'famly'. Did you mean 'family'"),
        (["family=VRA"], "no family 'VRA'. Did you mean 'VAR'"),
        (["kind=discreet"], "no kind 'discreet'. Did you mean 'discrete'"),
        (["licence=MTI"], "no licence of weights 'MTI'. Did you mean 'MIT'"),
        (["max_parameters=many"], "write 350M or 1.5B"),
        (["max_parameters=0"], "write 350M or 1.5B"),
        (["var_d16", "var_d20"], "Show one model by its name alone"),
        (["var_d16", "family=VAR"], "Show one model by its name alone"),
    ],
)
def test_bad_arguments_end_with_status_2_and_the_fix(words, told, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["argen", "models", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error


def test_help_fits_a_screen_and_names_every_filter(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["argen", "models", "--help"])
    cli.main()
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 100
    for name in models.FILTERS:
        assert f"{name}=" in text


def test_the_module_is_the_same_command():
    call = [sys.executable, "-m", "argen.models"]
    done = subprocess.run([*call, "vra_d16"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Did you mean" in done.stderr
    code = (
        "import sys; sys.argv = ['argen', 'models', '--help']; from argen.cli import main; main();"
        "assert 'torch' not in sys.modules and 'hydra' not in sys.modules"
    )
    helped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert helped.returncode == 0, helped.stderr
    assert "family=NAME" in helped.stdout


def test_a_card_says_what_is_published():
    shown = "\n".join(models.lines(["var_d16"]))
    for words in (
        "https://arxiv.org/abs/2404.02905",
        "Visual Autoregressive Modeling",
        "310M",
        "FID 3.55 (256 px, cfg=2.5, cfg_schedule=linear, cfg_inclusive=true, top_k=900",
        "tokenizer   var_vqvae",
        "fits too    var_vqvae_1024, var_vqvae_512",
        "https://huggingface.co/FoundationVision/var/resolve/main/var_d16.pth",
        "https://huggingface.co/FoundationVision/var/resolve/main/vae_ch160v4096z32.pth",
        "argen.convert source=var ckpt=var_d16.pth tokenizer_ckpt=vae_ch160v4096z32.pth",
        "argen.sample model=models/var_d16",
        "argen.evaluate model=models/var_d16 protocol=adm50k_256",
        "argen.train",
    ):
        assert words in shown
    parted = "\n".join(models.lines(["open_magvit2_b"]))
    assert "open_magvit2_f16 with +tokenizer.quantizer.split=[6,12]" in parted
    assert "the paper's table gives 111M" in "\n".join(models.lines(["elm_b"]))


def test_a_tokenizer_beside_a_generator_is_named_where_the_file_has_none():
    assert [w.file for w in tokenizer_weights(*find("rar_b"))] == [
        "maskgit-vqgan-imagenet-f16-256.bin"
    ]
    assert tokenizer_weights(*find("open_magvit2_b")) == ()  # carried along
    assert tokenizer_weights(*find("llamagen_t2i_xl")) == ()  # listed by the preset itself
    assert tokenizer_weights(*find("kl16")) == ()


@pytest.fixture(scope="module")
def composer():
    """Return Hydra's compose, set up once."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield compose
    GlobalHydra.instance().clear()


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_a_card_name_what_exists(name, composer):
    group, meta = find(name)
    found = commands(group, name, meta)
    assert "train" in found
    assert ("convert" in found) == bool(meta.convert)
    assert "sample" not in found or group == "generator"
    for verb, command in found.items():
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", f"argen.{verb}"]
        config = composer(config_name=verb, overrides=words[3:])
        if verb == "convert":
            importer = find_importer(config.source)
            assert hasattr(importer, f"import_{group}")
            assert "trust" not in meta.convert or config.trust
        if verb == "sample":
            for key, value in meta.settings.items():
                assert config[key] == value, key


def test_the_name_of_an_experiment_takes_the_place_of_its_parts(monkeypatch):
    meta = card("generator", "var_d16")
    train = commands("generator", "var_d16", meta)["train"]
    assert train == "python -m argen.train experiment=imagenet256/var_d16"
    monkeypatch.setattr("argen.zoo.card.experiment", lambda name: None)
    assert "optim=var" in commands("generator", "var_d16", meta)["train"]


def test_a_list_says_how_many_there_are():
    *_, last = models.lines(["family=xar"])
    assert last == "3 published models; `argen models NAME` shows one."
    with pytest.raises(UserError, match="Known: "):
        list(models.lines(["family=nobody"]))
