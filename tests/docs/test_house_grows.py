"""A new method is one file and one YAML: the examples of CONTRIBUTING.md are put into a copy of the
tree exactly as printed, the documentation is made anew, and the tests that every method must pass
are run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.S))
COPIED = ("argen", "configs", "tools", "docs", "tests", "benchmarks", "examples")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tree with every example in its place and the docs made anew."""
    copy = tmp_path_factory.mktemp("house")
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__", "golden")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy(path, copy / path.name)
    for name, text in EXAMPLES.items():
        path = copy / name
        assert not path.exists(), f"{name} exists by now; choose another example"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = run(copy, "tools/presets_table.py", "--write")
    assert done.returncode == 0, done.stderr
    return copy


def run(place: Path, *words: str, seconds: int = 600) -> subprocess.CompletedProcess[str]:
    """Run Python in a directory whose own argen comes first."""
    environment = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    environment = {k: v for k, v in environment.items() if not k.startswith("PYTEST_XDIST")}
    return subprocess.run(
        [sys.executable, *words],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def test_every_kind_has_an_example():
    kinds = {
        "tokenizer": "argen/tokenizers/",
        "quantiser": "argen/tokenizers/quantizers/",
        "generator": "argen/generators/",
        "strategy": "argen/decoding/",
        "importer": "argen/interop/",
        "loss": "argen/objectives/",
        "optimiser": "configs/optim/",
    }
    missing = [
        kind for kind, where in kinds.items() if not any(n.startswith(where) for n in EXAMPLES)
    ]
    assert not missing


@pytest.mark.slow
def test_contracts_hold_for_the_examples(house):
    done = run(
        house, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/contracts",
        "-k", "patches or gru or sign_ids or annealed or somebody", seconds=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 20


@pytest.mark.slow
def test_docs_and_architecture_hold_with_the_examples(house):
    files = [
        str(path.relative_to(house))
        for path in sorted((house / "tests").rglob("test_*.py"))
        if path.name in ("test_docs_tables.py", "test_architecture.py", "test_published.py")
    ]
    done = run(
        house, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files,
        "-k", "not composes and not commands", seconds=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_the_commands_train_and_draw_with_the_examples(house, tmp_path):
    tiny = ["data=digits", "data.image_size=16", "trainer=cpu", "evaluate=null", "codes.views=1"]
    tiny += ["fit.steps=3", "fit.batch_size=8", "samples.per_class=1", "logger=none"]
    trained = run(
        house, "-m", "argen.train", f"out={tmp_path}", "name=run", "tokenizer=tiny_sign_ids",
        "generator=tiny_gru", "objective=edges", "optim=sign_momentum", *tiny,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    patches = run(
        house, "-m", "argen.train", "stage=tokenizer", f"out={tmp_path}", "name=patches",
        "tokenizer=tiny_patches", *tiny,
    )  # fmt: skip
    assert patches.returncode == 0, patches.stderr
    drawn = run(
        house, "-m", "argen.sample", f"model={tmp_path}/run/model", "n=1", "decoder=annealed",
        f"out={tmp_path}/drawn",
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
