"""What the presets say of published systems is well-formed, complete and true of the networks."""

import copy
import re
from dataclasses import replace
from functools import cache

import pytest

from argen.build import META, build
from argen.convert import find_importer
from argen.decoding.default import default_decoder
from argen.errors import IncompatibleError, UserError
from argen.pipeline import settings as sampling_controls
from argen.runtime.presets import config_dir, preset, preset_names
from argen.zoo.card import best_score, score_text, size_text, words_of
from argen.zoo.checks import METRICS, SAMPLING
from argen.zoo.meta import GROUPS, Meta, card, experiment, find, published
from argen.zoo.pairs import fitting, generator_on, network_of, partner_of, tokenizer_of

ALL = [(group, name, meta) for group in GROUPS for name, meta in published(group)]
NAMES = [f"{group}-{name}" for group, name, _ in ALL]
GENERATORS = [(name, meta) for group, name, meta in ALL if group == "generator"]

network = cache(network_of)

ROUNDING = 0.01  # of a published number of parameters

GOOD = {
    "family": "Somebody's",
    "source": "https://github.com/somebody/something",
    "licence_code": "MIT",
    "licence_weights": "MIT",
    "arxiv": "2404.02905",
    "parameters": 310_000_000,
    "tokenizer": "var_vqvae",
    "weights": [{"file": "a.pth", "url": "https://example.org/a.pth", "what": "generator"}],
    "sampling": {"cfg": 2.5, "decoder": {"name": "confidence", "steps": 8}},
    "expected": [{"image_size": 256, "fid": 3.3, "cfg": 2.5}],
}


def changed(path, value):
    """Return the good mapping with one value replaced; a path of keys and indices."""
    mapping = copy.deepcopy(GOOD)
    node = mapping
    for key in path[:-1]:
        node = node[key]
    if value is KeyError:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return mapping


def test_a_good_mapping_is_read():
    meta = Meta.of(GOOD, where="x.yaml")
    assert meta.parameters == 310_000_000
    assert meta.weights[0].link == "https://example.org/a.pth"
    assert meta.settings == {"cfg": 2.5}
    assert meta.decoder == {"name": "confidence", "steps": 8}
    assert replace(meta, weights=()).weights == ()


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (["famly"], "x", "unknown key 'famly'. Did you mean 'family'"),
        (["family"], KeyError, "family is missing"),
        (["family"], 3, "family=3 must be a text"),
        (["source"], "github.com/a/b", "source=github.com/a/b is no address; write https"),
        (["source"], "http://github.com/a/b", "write https"),
        (["arxiv"], "arXiv 2404.02905", "arxiv=arXiv 2404.02905 is not a number like"),
        (["arxiv"], 2404.02905, "must be a text; put it in quotes"),
        (["parameters"], "310M", "parameters='310M' must be a positive whole number"),
        (["parameters"], 0, "parameters=0 must be a positive"),
        (["parameters"], True, "must be a positive"),
        (["image_size"], 2.5, "image_size=2.5 must be a positive"),
        (["tokenizer"], "var_vqva", "no tokenizer preset 'var_vqva'. Did you mean 'var_vqvae'"),
        (["optim"], "vr", "no optim preset 'vr'"),
        (["objective"], "var", "no objective preset 'var'. Did you mean"),
        (["weights"], "a.pth", "weights must be a list"),
        (["weights", 0], "a.pth", "weights[0] must be a mapping"),
        (["weights", 0, "what"], KeyError, "weights[0].what is missing"),
        (["weights", 0, "url"], "ftp://example.org/a", "weights[0].url=ftp"),
        (["weights", 0, "urls"], "https://a", "unknown key 'urls'. Did you mean 'url'"),
        (["weights", 0, "sha256"], "6726825d", "is not 64 hexadecimal digits"),
        (["weights", 0, "hub"], "somebody", "is not OWNER/NAME"),
        (["sampling", "cgf"], 2.0, "unknown key 'cgf'. Did you mean 'cfg'"),
        (["sampling", "decoder"], "confidence", "sampling.decoder must be a mapping"),
        (["sampling", "decoder", "name"], "confidance", "Did you mean 'confidence'"),
        (["sampling", "decoder", "stps"], 8, "unknown key 'stps'. Did you mean 'steps'"),
        (["convert"], {"sorce": "var"}, "unknown key 'sorce'. Did you mean 'source'"),
        (["expected"], KeyError, "expected is missing"),
        (["expected"], {}, "expected must be a list"),
        (["expected", 0, "fid"], KeyError, "expected[0] needs image_size and a score"),
        (["expected", 0, "image_size"], KeyError, "expected[0] needs image_size and a score"),
        (["expected", 0, "fid"], "3.3", "fid='3.3' must be a number"),
        (["expected", 0, "temprature"], 1.0, "Did you mean 'temperature'"),
    ],
)
def test_bad_mappings_are_refused_with_the_fix(path, value, told):
    with pytest.raises(UserError) as error:
        Meta.of(changed(path, value), where="generator/x.yaml: _meta_")
    assert str(error.value).startswith("generator/x.yaml: _meta_")
    assert told in str(error.value)


def test_no_mapping_at_all_is_refused():
    with pytest.raises(UserError, match="must be a mapping"):
        Meta.of("MIT", where="x.yaml")


def test_the_settings_are_those_of_the_command():
    assert SAMPLING == sampling_controls.SETTINGS
    command = (config_dir() / "sample.yaml").read_text()
    assert not [name for name in SAMPLING if not re.search(rf"^{name}: null", command, re.M)]


@pytest.mark.parametrize(("group", "name", "meta"), ALL, ids=NAMES)
def test_every_published_preset_is_filled(group, name, meta):
    assert meta.paper
    assert meta.arxiv
    assert meta.parameters
    first = (config_dir() / group / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    for weights in meta.weights:
        assert weights.link
        assert not re.search(r"\s", weights.file or "")
    if group == "generator":
        assert meta.tokenizer
        assert weights_or_none(meta)
    else:
        assert not meta.sampling
        assert meta.tokenizer is None
    if meta.convert:
        importer = find_importer(meta.convert["source"])
        assert hasattr(importer, f"import_{group}")


def weights_or_none(meta):
    """Whether files are listed, or none are known to be released."""
    return bool(meta.weights) or not meta.licence_weights.startswith(("MIT", "Apache"))


@pytest.mark.parametrize(("name", "meta"), GENERATORS, ids=[name for name, _ in GENERATORS])
def test_the_published_sampling_can_be_drawn_with(name, meta):
    guidance, _ = sampling_controls.controls({}, meta.settings)
    generator = network("generator", name)
    if guidance.active:
        generator.conditioner.require_null()
    decoder = meta.decoder
    if decoder:
        strategy = build({**preset("decoder", decoder.pop("name")), **decoder})
        strategy.check(generator)
    else:
        default_decoder(generator).check(generator)
    for entry in meta.expected:
        sampling_controls.controls({k: v for k, v in entry.items() if k in SAMPLING})


@pytest.mark.parametrize(("name", "meta"), GENERATORS, ids=[name for name, _ in GENERATORS])
def test_sampling_is_that_of_the_best_score(name, meta):
    fair = [e for e in meta.expected if "selection" not in e and set(e) & {*SAMPLING, "decoder"}]
    if not fair:
        return
    best = min(fair, key=lambda entry: entry.get("fid", -entry.get("geneval", 0)))
    assert {k: v for k, v in best.items() if k in (*SAMPLING, "decoder")} == dict(meta.sampling)
    assert meta.image_size == best["image_size"]


@pytest.mark.parametrize(("group", "name", "meta"), ALL, ids=NAMES)
def test_parameters_are_those_of_the_network(group, name, meta):
    built = sum(p.numel() for p in network(group, name).parameters())
    rounded = meta.parameters % 1_000_000 == 0
    if not rounded:  # counted here, for the paper gives none
        assert meta.parameters == built
    elif abs(built - meta.parameters) > ROUNDING * meta.parameters:
        assert meta.note, f"{name}: {built:,} built, {meta.parameters:,} published; say why"
        assert f"{built / 1e6:.1f}M" in meta.note


def test_presets_without_meta_are_argens_own():
    for group in GROUPS:
        known = {name for name, _ in published(group)}
        own = set(preset_names(group)) - known
        assert own
        assert len(known) > 50
        for name in own:
            assert card(group, name) is None
            assert META not in preset(group, name)


def test_families_stand_together_in_the_order_of_their_papers():
    for group in GROUPS:
        found = [meta for _, meta in published(group)]
        families = [meta.family for meta in found]
        first = list(dict.fromkeys(families))
        assert [f for i, f in enumerate(families) if i == 0 or f != families[i - 1]] == first
        numbers = [min(meta.arxiv for meta in found if meta.family == f) for f in first]
        assert numbers == sorted(numbers)


def test_a_preset_is_found_by_name():
    assert find("var_d16")[0] == "generator"
    assert find("kl16")[0] == "tokenizer"
    with pytest.raises(UserError, match="Did you mean 'var_d16'"):
        find("var_d61")
    with pytest.raises(UserError, match="no published model 'tiny_var'"):
        find("tiny_var")
    with pytest.raises(UserError, match="Did you mean 'var_d16'"):
        card("generator", "var_d166")


@pytest.mark.parametrize(
    "name", ["var_d16", "mar_b", "llamagen_b", "elm_b", "open_magvit2_b", "maskgit_titok_l32"]
)
def test_pairs_are_those_that_are_built(name):
    fits = fitting(name)
    generator_on(name, partner_of(name))
    for other in ("var_vqvae", "kl16", "ibq_16384", "wetok_imagenet_f16", "titok_b64"):
        if other in fits:
            generator_on(name, tokenizer_of(other))
        else:
            with pytest.raises((UserError, IncompatibleError)):
                generator_on(name, tokenizer_of(other))


def test_what_fits_what():
    assert fitting("var_d16") == ["var_vqvae", "var_vqvae_1024", "var_vqvae_512"]
    assert "kl16" in fitting("mar_b")
    assert "llamagen_vq16" not in fitting("mar_b")
    assert fitting("llamagen_b", ["llamagen_vq16", "kl16"]) == ["llamagen_vq16"]


def test_scores_and_sizes_as_text():
    assert size_text(310_000_000) == "310M"
    assert size_text(1_460_000_000) == "1.46B"
    assert size_text(66_456_019) == "66.5M"
    assert size_text(None) == "-"
    entry = {"image_size": 256, "cfg_sub_tokens": [1.9, 2.0], "fid": 3.0, "is": 258.2}
    assert score_text(entry) == "FID 3.0, IS 258.2 (256 px, cfg_sub_tokens=[1.9,2.0])"
    assert score_text(entry, ["rfid"]) == ""
    assert words_of({"cfg": 2.0, "decoder": {"name": "masked", "steps": 64}}) == [
        "cfg=2.0",
        "decoder=masked",
        "decoder.steps=64",
    ]
    assert best_score(find("net2net_imagenet")[1]) == "FID 15.98"  # others threw samples away
    assert best_score(find("elm_b")[1]) == "-"
    assert set(METRICS) >= {"fid", "rfid", "geneval"}


def test_experiments_are_found_by_the_name_of_the_preset(tmp_path, monkeypatch):
    assert experiment("no_such_preset") is None
    path = tmp_path / "experiment" / "imagenet256" / "var_d16.yaml"
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr("argen.zoo.meta.config_dir", lambda: tmp_path)
    assert experiment("var_d16") == "imagenet256/var_d16"
    assert experiment("var_d20") is None
