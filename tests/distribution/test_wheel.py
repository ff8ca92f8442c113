"""A wheel carries the configs and finds them outside a checkout; recordings stay in that."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import argen
from argen.runtime.presets import preset_names

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A directory with the wheel and the source distribution."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--sdist", "--no-isolation"]
    done = subprocess.run(
        [*command, "--outdir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
        cwd=out,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


def test_the_source_distribution_leaves_recordings_out(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"argen/__init__.py", "configs/train.yaml", "tests/conftest.py", "README.md"} <= names
    assert "tests/golden/training_losses.json" in names
    assert not [n for n in names if n.endswith((".safetensors", "card.json"))]
    assert path.stat().st_size < 5e6


def test_contents(wheel):
    assert wheel.name == f"argen-{argen.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    configs = {
        f"argen/_configs/{path.relative_to(ROOT / 'configs').as_posix()}"
        for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert "argen/_configs/train.yaml" in configs
    assert configs <= names
    packages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "argen").rglob("*.py")}
    assert packages <= names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert any(n.endswith("licenses/NOTICE") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "tools/"))]
    assert not [n for n in names if n.endswith(".safetensors")]
    assert "argen = argen.cli:main" in entry


def test_installed_configs_are_found(wheel, tmp_path):
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(target), str(wheel)], check=True, cwd=tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r}); "
        "import argen.runtime.presets as c; print(c.config_dir());"
        "print(*c.preset_names('tokenizer'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    directory, names = done.stdout.splitlines()
    assert Path(directory) == target / "argen" / "_configs"
    assert (Path(directory) / "train.yaml").is_file()
    assert names.split() == preset_names("tokenizer")
