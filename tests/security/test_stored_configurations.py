"""Which names a stored configuration may say: every name of argen is tried, and mutations."""

from __future__ import annotations

import ast
import copy
import json
import pkgutil
import random
import sys
import warnings
from importlib import import_module
from inspect import isclass
from pathlib import Path

import pytest
import torch
from torch import nn

import argen
from argen import build as building
from argen.build import build, build_stored, locate, require_registered
from argen.decoding.base import Decoder
from argen.errors import UserError
from argen.generators.base import Generator
from argen.runtime.presets import preset, preset_names
from argen.tokenizers.base import Tokenizer
from argen.tokenizers.schedules import Linear, WarmupCosine
from argen.training.optim import Optim

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "written_by_0_1" / "expected"
CONTRACTS = (nn.Module, Decoder, Optim, Linear, WarmupCosine)
PARTS = (
    "tokenizers",
    "generators",
    "layers",
    "objectives",
    "decoding",
    "text",
    "testing",
    "training",
)
DATA = {
    "argen.data.digits.digits",
    "argen.data.emoji.emoji",
    "argen.data.folder.folder",
    "argen.data.tar_source.webdataset",
}
TEXT = {"argen.text.minilm.minilm"}
OUTSIDE = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.run",
    "subprocess.Popen",
    "importlib.import_module",
    "pickle.loads",
    "shutil.rmtree",
    "pathlib.Path",
    "torch.load",
    "torch.hub.load",
    "torch.nn.Linear",
    "torch.nn.Module",
    "antigravity.fly",
    "this.s",
    "planted.run",
    "planted",
    "argen",
    "argen.load",
    "argen.cli.main",
    "argen.evaluate.main",
    "",
    ".",
    "argen.",
    ".argen.generators.gpt.GPT",
    "argen..generators.gpt.GPT",
    "argen.generators.gpt.",
    "argen.generators.gpt.GPT.__init__",
    "argen.generators.gpt.GPT.from_pretrained",
    "argen.generators.gpt.__builtins__",
    "argen.generators.gpt.torch.load",
    "argen.generators.gpt.nn.Linear",
    "argen.generators.gpt.torch.hub.load",
    "argen.tokenizers.base.Tokenizer.__subclasses__",
    "argen.tokenizers.../../x.y",
    "argen.tokenizers.planted.run",
    "argen.generatorsx.gpt.GPT",
    "argen/generators/gpt/GPT",
    "argen.generators.gpt.GPT ",
    "argen.generators.gpt\n.GPT",
]


def modules():
    """Yield every module of argen, imported."""
    for found in pkgutil.walk_packages(argen.__path__, "argen."):
        yield import_module(found.name)


def allowed():
    """Return what a file may name, found without argen.build: classes that are defined there."""
    names = set()
    for module in modules():
        if module.__name__.split(".")[1] not in PARTS:
            continue
        for name, value in vars(module).items():
            if (
                isclass(value)
                and issubclass(value, CONTRACTS)
                and f"{value.__module__}.".startswith(f"{module.__name__}.")
            ):
                names.add(f"{module.__name__}.{name}")
    return names


def test_of_all_names_only_registered_classes_are_taken():
    expected, taken, tried = allowed(), set(), 0
    for module in modules():
        for name in vars(module):
            tried += 1
            try:
                locate(f"{module.__name__}.{name}")
            except UserError:
                continue
            taken.add(f"{module.__name__}.{name}")
    assert tried > 5000
    assert taken == expected
    assert {"argen.generators.gpt.GPT", "argen.tokenizers.cnn.Encoder"} <= taken
    assert len(taken) > 80


@pytest.mark.parametrize(("kind", "functions"), [("data", DATA), ("text", TEXT)])
def test_functions_are_taken_only_where_they_belong(kind, functions):
    classes, taken = allowed(), set()
    for module in modules():
        for name in vars(module):
            try:
                locate(f"{module.__name__}.{name}", functions=kind)
            except UserError:
                continue
            taken.add(f"{module.__name__}.{name}")
    assert taken - classes == functions
    for path in functions:
        with pytest.raises(UserError, match="trust=true"):
            build({"_target_": "argen.generators.gpt.GPT", "spec": {"_target_": path}})


@pytest.mark.parametrize("path", OUTSIDE, ids=repr)
def test_names_outside_are_refused_and_not_imported(path):
    before = set(sys.modules)
    with pytest.raises(UserError):
        locate(path)
    with pytest.raises(UserError):
        build({"_target_": "argen.generators.gpt.GPT", "spec": {"_target_": path}})
    assert set(sys.modules) == before


def test_a_link_by_another_module_is_not_the_class():
    with pytest.raises(UserError, match="trust=true"):
        locate("argen.tokenizers.titok.LatentEncoder")  # imported there, defined elsewhere
    assert locate("argen.decoding.speculative.Speculative").__name__ == "Speculative"  # its package


@pytest.mark.parametrize("group", ["tokenizer", "generator", "decoder"])
def test_every_preset_may_stand_in_a_file(group):
    for name in preset_names(group):
        config = preset(group, name)
        if config and "_target_" in config:
            require_registered(config)


def test_stored_addresses_are_refused():
    for address in ("http://a.example/x", "S3://a/b", "pipe:cat x", "PIPE:cat x", " pipe:x"):
        config = {"_target_": "argen.text.pretrained.PretrainedText", "path": [{"a": address}]}
        with pytest.raises(UserError, match="address"):
            require_registered(config, functions="text")
    # What people read about a preset is no argument.
    require_registered({"_target_": "argen.generators.gpt.GPT", "_meta_": {"source": "https://a"}})


# Events of Python that say a file was written, a program was started, code was loaded.
ALARMING = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.putenv",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.symlink",
    "os.link",
    "os.chmod",
    "shutil.",
    "socket.",
    "pickle.find_class",
    "ctypes.dlopen",
    "exec",
    "compile",
    "urllib.Request",
)


class Watch:
    """Notes alarming events while it is on; a hook of Python cannot be taken out again."""

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self)

    def __call__(self, event, args):
        if not self.on:
            return
        if event == "open" and (str(args[1] or "r") not in ("r", "rb") or "canary" in str(args)):
            self.seen.append((event, args[:2]))
        elif event.startswith(ALARMING):
            self.seen.append((event, args))

    def find_spec(self, name, path=None, target=None):
        """Note what is looked for to be imported; find nothing. No event tells import_module."""
        if self.on:
            self.seen.append(("import", name))

    def __enter__(self):
        self.seen.clear()
        sys.meta_path.insert(0, self)
        self.on = True

    def __exit__(self, *_):
        self.on = False
        sys.meta_path.remove(self)


@pytest.fixture(scope="module")
def watch():
    return Watch()


def test_the_watch_sees_what_it_should(watch, tmp_path):
    with watch:
        (tmp_path / "x").write_text("x")
        (tmp_path / "x").unlink()
        build({"_target_": "os.system", "command": "true"}, trust=True)
        with pytest.raises(UserError):
            build({"_target_": "planted_nowhere.run"}, trust=True)
    seen = {event for event, _ in watch.seen}
    assert seen >= {"open", "os.remove", "os.system", "import"}


def nodes(config, found=None):
    """Return every place (container, key) in a configuration."""
    found = [] if found is None else found
    pairs = config.items() if isinstance(config, dict) else enumerate(config)
    for key, value in list(pairs):
        found.append((config, key))
        if isinstance(value, dict | list):
            nodes(value, found)
    return found


def targets(config):
    """Yield every `_target_` in a configuration."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield config["_target_"]
        for key, value in config.items():
            if key != "_meta_":
                yield from targets(value)
    elif isinstance(config, list):
        for value in config:
            yield from targets(value)


def test_mutated_configurations_import_and_call_nothing_else(watch, tmp_path, monkeypatch):
    """600 of them; whatever names something else is refused before any part of it is built."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted.py").write_text("open('canary', 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = [f"{module.__name__}.{name}" for module in modules() for name in vars(module)]
    registered, rng = allowed(), random.Random(7)
    stored = json.loads((GOLDEN / "config.json").read_text())
    plain = [None, [], {}, "", "abc", -1, 0, 1.5, True, [1, 2], "canary", {"a": []}]
    built, refused, calls = 0, 0, []
    original = building._made
    monkeypatch.setattr(building, "_made", lambda *a: (calls.append(a[0]), original(*a))[1])

    def argument():
        chosen = rng.choice([*plain, "touch canary", str(tmp_path / "canary"), "planted", "os"])
        return copy.deepcopy(chosen)  # a list that is shared could come to hold itself

    def target():
        kind = rng.random()
        if kind < 0.2:
            return rng.choice(OUTSIDE)
        return rng.choice(sorted(registered)) if kind < 0.4 else rng.choice(names)

    def node(depth=0):
        keys = ("path", "name", "url", "command", "config", "spec", "args", "file", "weights")
        made = {key: argument() for key in rng.sample(keys, rng.randrange(3))}
        if depth < 2 and rng.random() < 0.3:
            made["spec"] = node(depth + 1)
        return {"_target_": target(), **made}

    # What is loaded at the first use of a module is not the mutation's doing.
    for part, of in (("tokenizer", Tokenizer), ("generator", Generator)):
        build_stored(stored[part], of, source="config.json")
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    for number in range(600):
        part, of = rng.choice((("tokenizer", Tokenizer), ("generator", Generator)))
        config = copy.deepcopy(stored[part])
        for _ in range(rng.randrange(1, 3)):
            container, key = rng.choice(nodes(config))
            container[key] = target() if key == "_target_" else rng.choice((node, argument, node))()
        calls.clear()
        strange = [t for t in targets(config) if t not in registered]
        with watch:
            try:
                build_stored(config, of, source="config.json")
                built += 1
                outcome = "built"
            except UserError:
                refused += 1
                outcome = "refused"
        shown = f"{number}: {json.dumps(config)}"
        if strange:
            assert outcome == "refused", shown
            assert not calls, f"a part was built before all was looked at: {shown}"
        foreign = [
            seen
            for seen in watch.seen
            if seen[0] != "import" or seen[1].split(".")[0] not in ("argen", "torch")
        ]
        assert not foreign, f"{foreign[:3]} by {shown}"
        assert not (tmp_path / "canary").exists(), shown
        assert "planted" not in sys.modules, shown
    assert refused > 300
    assert built > 0


def test_every_call_says_whom_it_trusts():
    """In argen's own code no call of `build` leaves to the default whom it trusts."""
    for path in sorted((ROOT / "argen").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            if call.func.id == "build" and path.name != "build.py":
                given = {word.arg for word in call.keywords}
                assert "trust" in given, f"{path}:{call.lineno} leaves trust= out"


USERS = '''
from argen.tokenizers.quantizers.vq import VQ


class Mine(VQ):
    """A quantiser of the user's own."""
'''


def test_classes_of_the_user_need_trust(tmp_path, monkeypatch, edited):
    (tmp_path / "users_quantizer.py").write_text(USERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = edited(tokenizer__quantizer___target_="users_quantizer.Mine")
    with pytest.raises(UserError, match="trust=true"):
        argen.load(model)
    assert "users_quantizer" not in sys.modules
    pipe = argen.load(model, trust=True)
    assert type(pipe.tokenizer.quantizer).__name__ == "Mine"
    pipe.save(tmp_path / "again")
    with pytest.raises(UserError, match=r"users_quantizer\.Mine"):
        argen.load(tmp_path / "again")
    assert argen.load(tmp_path / "again", trust=True).tokenizer.quantizer.config["_target_"] == (
        "users_quantizer.Mine"
    )
