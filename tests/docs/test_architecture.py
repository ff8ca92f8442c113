"""The house rules that a machine can check: who imports whom, what an import costs, file sizes."""

import ast
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "argen"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 350

# The floors of the house. A module imports lower floors and its own package, nothing else; two
# packages of one floor do not know each other. What is on no floor fails the test.
FLOORS: list[set[str]] = [
    {"errors", "spec", "build", "moved"},
    {"runtime"},
    {"images", "layers", "zoo"},
    {"pretrained", "data", "text", "tokenizers"},
    {"objectives", "generators"},
    {"decoding", "interop"},
    {"pipeline", "testing"},
    {"evaluation", "training"},
    {"recipes"},
    {"cli", "train", "tokenize", "reconstruct", "sample", "evaluate", "convert", "models"},
]
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}
# The one exception: next-scale generators read the quantiser of their frozen tokenizer.
EXCEPTION = ("generators", "argen.tokenizers.quantizers")


def part_of(path):
    """Return the package or module right below argen that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Return (module, line) of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            if node.module == "argen":
                for alias in node.names:
                    yield f"argen.{alias.name}", node.lineno
            else:
                yield node.module, node.lineno


def shown(path, line):
    return f"{path.relative_to(ROOT)}:{line}"


def own_imports(path):
    """Return (module, line) of what a file imports of argen, as the module that is meant."""
    for module, line in imports(path):
        if module.startswith("argen.") and module != "argen.__version__":
            yield module, line


def test_every_module_is_on_a_floor():
    assert {part_of(path) for path in FILES} - {"__init__"} == set(FLOOR)


def test_imports_run_one_way():
    wrong = []
    for path in FILES:
        part = part_of(path)
        if part == "__init__":  # the front door shows what is inside
            continue
        for module, line in own_imports(path):
            other = module.split(".")[1]
            exception = part == EXCEPTION[0] and module.startswith(EXCEPTION[1])
            beside = part in {"errors", "spec", "build", "moved"} and FLOOR[other] == 0
            if other != part and FLOOR[other] >= FLOOR[part] and not (exception or beside):
                wrong.append(f"{shown(path, line)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_no_import_runs_in_a_circle():
    """Nor inside a package, nor inside a function or for type checking alone."""
    files = {
        "argen." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in FILES
    }
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph = {
        name: {
            target
            for module, _ in imports(path)
            if (target := module if module in files else module.rpartition(".")[0]) in files
            and not name.startswith(f"{target}.")  # a package's door opens before its rooms
        }
        - {name}
        for name, path in files.items()
        if name != "argen"
    }
    done: set[str] = set()

    def walk(name, trail):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for target in sorted(graph.get(name, ())):
                walk(target, [*trail, name])
            done.add(name)

    for name in sorted(graph):
        walk(name, [])


def importers(*names):
    """Return {part: places} that import one of these top-level modules."""
    found = {}
    for path in FILES:
        for module, line in imports(path):
            if module.split(".")[0] in names:
                found.setdefault(part_of(path), []).append(shown(path, line))
    return found


def test_lightning_stays_in_training():
    found = importers("lightning", "pytorch_lightning")
    assert "training" in found
    assert set(found) == {"training"}, found


def test_hydra_stays_in_entry_points():
    commands = FLOORS[-1]
    assert set(importers("hydra")) <= commands | {"runtime"}
    assert set(importers("omegaconf")) <= commands | {"runtime"}


def loaded_by(module):
    """Return the modules that importing `module` loads in a fresh interpreter."""
    code = (
        "import sys; before = set(sys.modules); "
        f"import {module}; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.split()


def entry_points():
    """Return the modules that are run as commands."""
    return [
        f"argen.{path.stem}"
        for path in sorted(PACKAGE.glob("*.py"))
        if '__name__ == "__main__"' in path.read_text()
    ]


@pytest.mark.parametrize("module", ["argen", "argen.errors"])
def test_importing_the_package_is_cheap(module):
    modules = loaded_by(module)
    own = {"argen", module}
    assert own <= set(modules)
    foreign = {m.split(".")[0] for m in modules} - sys.stdlib_module_names - {"argen"}
    assert not foreign
    assert len(modules) < 80  # an import of torch alone brings over a thousand


@pytest.mark.parametrize("module", entry_points())
def test_help_does_not_wait_for_torch(module):
    heavy = {"torch", "torchvision", "lightning", "numpy", "PIL", "safetensors", "torchmetrics"}
    assert not heavy & set(loaded_by(module))


def test_commands_exist():
    assert {"argen.train", "argen.sample", "argen.evaluate", "argen.tokenize", "argen.convert"} <= (
        set(entry_points())
    )


def test_no_file_is_too_long():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in FILES
        if (lines := len(path.read_text().splitlines())) > LONGEST
    }
    assert not long, f"cut in two what has over {LONGEST} lines: {long}"


def test_no_drawer_for_odds_and_ends():
    forbidden = {"utils", "util", "misc", "common", "helpers"}
    assert not [path for path in FILES if path.stem in forbidden or path.parent.name in forbidden]


def test_test_files_have_names_of_their_own():
    # Folders of tests are no packages, so pytest tells files apart by name alone.
    names = sorted(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(set(names)) == len(names), [a for a, b in pairwise(names) if a == b]


def tracked_files():
    """Return what is committed; everything but hidden and built files outside a checkout."""
    done = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode == 0 and done.stdout:
        return [ROOT / name for name in done.stdout.splitlines()]
    return [
        path for name in ("argen", "configs", "tests", "docs") for path in (ROOT / name).rglob("*")
    ]


# A path of one machine is of no use on another. Written in parts, for this file is checked too.
MACHINE_PATH = re.compile(
    "|".join(
        (
            r"(?<![\w.])/" + r"work/",
            r"/opt/" + r"venv",
            r"(?<![\w.])/" + r"(?:home|Users)/(?!argen\b)\w+",
            r"(?<![\w.])/" + r"root/",
            r"C:" + r"\\\\Users",
        )
    )
)


def test_no_path_of_one_machine():
    found = []
    for path in tracked_files():
        if not path.is_file():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)
