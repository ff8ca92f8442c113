"""The files around the code say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import argen

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == argen.__version__
    assert citation["cff-version"] == "1.2.0"
    assert f'license = "{citation["license"]}"' in PYPROJECT
    assert f'Source = "{citation["repository-code"]}"' in PYPROJECT


def test_changelog_has_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(argen.__version__)}\]", changelog, re.M)


def test_types_are_announced() -> None:
    assert (ROOT / "argen" / "py.typed").is_file()


def test_everything_in_the_sdist_exists() -> None:
    listed = re.search(r"targets\.sdist\]\ninclude = \[(.*?)\]", PYPROJECT, re.S)
    assert listed
    names = re.findall(r'"([^"]+)"', listed[1])
    assert {"mkdocs.yml", "examples", "CITATION.cff", "SECURITY.md", "CONTRIBUTING.md"} <= set(
        names
    )
    assert all((ROOT / name).exists() for name in names)


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_whole(form: Path) -> None:
    content = yaml.safe_load(form.read_text())
    if form.stem == "config":
        assert all({"name", "url", "about"} == set(link) for link in content["contact_links"])
        return
    assert {"name", "description", "body"} <= set(content)
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    names = [field["id"] for field in fields]
    assert len(names) == len(set(names))
    assert any(field.get("validations", {}).get("required") for field in fields)
    for field in fields:
        assert field["type"] in ("input", "textarea", "dropdown", "checkboxes")
        assert ("options" in field["attributes"]) == (field["type"] in ("dropdown", "checkboxes"))


def test_extras_of_the_documentation_exist() -> None:
    extras = set(re.findall(r"^(\w+) = \[", PYPROJECT.split("optional-dependencies]")[1], re.M))
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        extra
        for page in pages
        for extra in re.findall(r"pip install (?:-e )?[\"']\S*\[(\w+)\]", page.read_text())
    }
    assert named <= extras
    assert "docs" in named
