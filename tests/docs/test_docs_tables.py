"""The tables and the commands of the documentation are those of the code."""

import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from argen.build import locate
from argen.interop.find import find_importer
from argen.pipeline.settings import SETTINGS
from argen.runtime.presets import config_dir

ROOT = Path(__file__).parents[2]
presets_table = importlib.import_module("presets_table")

PARTS = ("tokenizer", "generator", "drafter")  # what an importer may read
SAMPLING = re.compile(r"(cfg|cfg_\w+|temperature|top_k|top_p|min_p)")

PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text()
    for name in ("tokenizers", "generators", "decoding", "clusters", "training", "evaluation")
}
SHOWN = [
    (page, match[2], match[0])
    for page, text in PAGES.items()
    for match in presets_table.MARKED.finditer(text)
]
COMMANDS = sorted(
    {
        line
        for page in (ROOT / "docs").rglob("*.md")
        for line in re.findall(
            r"^ *(python -m argen\..*)$", page.read_text().replace("\\\n", " "), re.M
        )
        if "..." not in line
    }
)


def test_every_table_is_shown():
    assert sorted(name for _, name, _ in SHOWN) == sorted(presets_table.TABLES)


@pytest.mark.parametrize(("page", "name", "shown"), SHOWN, ids=[name for _, name, _ in SHOWN])
def test_tables_are_up_to_date(page, name, shown):
    made = presets_table.refreshed(shown, lambda key: presets_table.TABLES[key]())
    assert shown == made, f"docs/{page}.md is out of date: python tools/presets_table.py --write"


@pytest.fixture(scope="module")
def composer():
    """Return Hydra's compose, set up once."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield compose
    GlobalHydra.instance().clear()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_what_exists(composer, command):
    words = shlex.split(command, comments=True)
    if "cluster=slurm" in words:  # several values become jobs: the first of them stands for all
        words = [word if "[" in word else word.split(",")[0] for word in words]
    assert words[:2] == ["python", "-m"]
    name, overrides = words[2].removeprefix("argen."), words[3:]
    config = composer(config_name=name, overrides=overrides)
    for word in overrides:
        group, _, choice = word.partition("=")
        if group == "experiment":  # Hydra passes over an optional choice that does not exist
            assert (config_dir() / "experiment" / f"{choice}.yaml").is_file(), choice
        if SAMPLING.fullmatch(group.lstrip("+")):  # `++` would also add what nothing reads
            assert group.lstrip("+") in SETTINGS, word
    if name == "convert":
        importer = find_importer(config.source)
        given = {**config.options, **config.tokenizer_options}
        parts = [getattr(importer, f"import_{part}", None) for part in PARTS]
        taken = {key for part in parts if part for key in inspect.signature(part).parameters}
        assert set(given) <= taken
    if name == "train":
        for group in ("tokenizer", "generator", "objective", "optim", "data"):
            choice = config.get(group)
            assert choice is None or locate(choice["_target_"], trust=True)


def test_every_strategy_has_a_section():
    sections = re.findall(r"^### (\w+)$", presets_table.options_list(), re.M)
    assert sections == presets_table.preset_names("decoder")


def test_a_section_names_every_option_of_the_preset():
    for section in presets_table.options_list().split("### ")[1:]:
        name, text = section.split("\n", 1)
        options = set(presets_table.preset("decoder", name)) - {"_target_", presets_table.META}
        assert options <= set(re.findall(r"^\| `(\w+)` \|", text, re.M)), name
