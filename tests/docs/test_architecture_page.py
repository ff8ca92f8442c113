"""docs/architecture.md says what the code says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
BLOCKS = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.S)


def members(node):
    """Return {name: what is written} of a class's attributes and methods."""
    found = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign):
            found[item.target.id] = ast.unparse(item)
        elif isinstance(item, ast.FunctionDef):
            returns = ast.unparse(item.returns) if item.returns else "None"
            found[item.name] = f"({ast.unparse(item.args)}) -> {returns}"
    return found


def classes(text):
    return {n.name: members(n) for n in ast.parse(text).body if isinstance(n, ast.ClassDef)}


CASES = [(path, name, shown) for path, block in BLOCKS for name, shown in classes(block).items()]


@pytest.mark.parametrize(("path", "name", "shown"), CASES, ids=[case[1] for case in CASES])
def test_signatures(path, name, shown):
    written = classes((ROOT / path).read_text())[name]
    assert shown
    for member, text in shown.items():
        assert written[member] == text, f"{name}.{member}"


def test_all_contracts_are_shown():
    assert {name for _, name, _ in CASES} >= {
        "CodeSpec",
        "Tokenizer",
        "Quantizer",
        "Conditioner",
        "Generator",
        "Plan",
        "Head",
        "Decoder",
        "Noise",
        "Pipeline",
    }


def test_paths_exist():
    named = set(re.findall(r"`((?:argen|configs|tools|tests|docs)/[\w./-]*)`", PAGE))
    named -= {"argen/_configs"}  # exists in an installed wheel only
    assert len(named) > 8
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing
    layout = PAGE.split("## Where things live")[1].split("```")[1]
    folder, lost = "", []
    for line in layout.strip().splitlines():
        if line.startswith("     "):  # goes on
            continue
        left = line.split("   ")[0] if not line.startswith("  ") else line[2:].split("   ")[0]
        for word in left.split():
            if not line.startswith("  "):
                folder = word if word == "argen/" else ""
            path = ROOT / (folder + word if line.startswith("  ") else word)
            if not path.exists():
                lost.append(str(path.relative_to(ROOT)))
    assert not lost
