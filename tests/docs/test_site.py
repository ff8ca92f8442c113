"""The documentation site builds without a warning and fetches nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(
            name, reason='the extra docs is not installed: pip install -e ".[docs]"'
        )
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text()
        assert not re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="(?:https?:)?//[^"]*', text), page
        assert not re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="(?:https?:)?//[^"]*', text)


def test_the_reference_holds_the_contracts(site: Path) -> None:
    text = (site / "reference.html").read_text()
    for name in (
        "Pipeline",
        "Pipeline.__call__",
        "spec.CodeSpec",
        "tokenizers.base.Tokenizer",
        "load",
    ):
        assert f'id="argen.{name}"' in text
    assert 'id="argen.generators.base.Generator.predict"' in text
    assert 'id="argen.decoding.base.Decoder' in text
