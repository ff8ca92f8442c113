"""How the tests run: one thread a process, dealt out by what they share, in three sizes.

- `pytest`: everything but what is marked `full`.
- `FULL=1 pytest` or `pytest -m full`: every pair, every training, at full length.
- `pytest -m quick`: an answer in two minutes, see `QUICK`.
"""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

# Before torch is imported, and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What `pytest -m quick` runs: directories and files below tests/, and single tests. Left out of
# them is what is marked slow or full.
QUICK = (
    "data/",
    "decoding/",
    "docs/test_architecture.py",
    "docs/test_readme.py",
    "evaluation/test_protocol.py",
    "evaluation/test_statistics.py",
    "generators/",
    "layers/",
    "text/",
    "tokenizers/test_codebooks.py",
    "tokenizers/test_losses.py",
    "training/test_learning_rates.py",
    "commands/test_commands.py::test_help_can_be_read",
    "commands/test_commands.py::test_bad_input",
)
# Contracts of one preset a kind of codes and a way to draw them.
QUICK_PRESETS = {
    "tokenizer": ("tiny_vq", "tiny_bits", "tiny_kl", "tiny_multiscale", "tiny_titok"),
    "generator": ("tiny_gpt", "tiny_elm", "tiny_mar", "tiny_maskgit", "tiny_var"),
}
CONTRACTS = {"test_tokenizer_contract.py": "tokenizer", "test_generator_contract.py": "generator"}

# Directories whose tests take longest, first: no process is left alone with them at the end.
LONGEST_FIRST = ("commands/", "tools/", "contracts/")


def place(nodeid: str) -> str:
    """Return a test's id below tests/."""
    return nodeid.removeprefix("tests/")


def is_quick(nodeid: str) -> bool:
    """Say whether `pytest -m quick` runs a test that is neither slow nor full."""
    path = place(nodeid)
    file, _, test = path.partition("::")
    group = CONTRACTS.get(file.removeprefix("contracts/"))
    if group is not None:
        return any(f"[{name}]" in test for name in QUICK_PRESETS[group])
    return any(path.startswith(start) for start in QUICK)


def share(nodeid: str) -> str:
    """Return what goes to one process together.

    Contracts go by preset, as many as there are: their tests share a network. Recorded runs go one
    by one. Any other file goes whole, for its tests share what its fixtures trained.
    """
    file, _, test = place(nodeid).partition("::")
    word = re.search(r"\[(\w+)", test)
    if file.startswith("contracts/") and word is not None:
        name = word[1]
        return name if name.startswith("tiny_") else f"contracts {name.partition('_')[0]}"
    if test.startswith("test_recorded_run["):
        return test
    return file


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is quick, leave out what only a full run does, and put the longest first."""
    for item in items:
        own = {mark.name for mark in item.iter_markers()}
        if not own & {"slow", "full"} and is_quick(item.nodeid):
            item.add_marker("quick")
    # A test that is named gets run.
    named = any("::" in str(word) for word in config.args)
    if not (named or os.environ.get("FULL") or "full" in config.option.markexpr):
        left_out = [item for item in items if item.get_closest_marker("full")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if not item.get_closest_marker("full")]
    items.sort(key=lambda item: rank(place(item.nodeid)))


def rank(path: str) -> int:
    """Return where a directory stands in `LONGEST_FIRST`, behind all of them if nowhere."""
    starts = [path.startswith(start) for start in LONGEST_FIRST]
    return starts.index(True) if any(starts) else len(starts)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal tests out by `share`, in the order of collection."""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByShare(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return share(nodeid)

    config.option.loadscopereorder = False
    return ByShare(config, log)
