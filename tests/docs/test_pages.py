"""The pages of the site hang together: each is in the navigation, each link leads somewhere."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
site_pages = importlib.import_module("site_pages")

DOCS = ROOT / "docs"
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
OUTSIDE = ["README.md", *site_pages.PAGES]
PAGES = [*OUTSIDE, *(path.relative_to(ROOT).as_posix() for path in sorted(DOCS.rglob("*.md")))]
FENCED = re.compile(r"^```.*?^```", re.S | re.M)


def pages_of(nav: Any) -> Iterator[str]:
    """Return the pages of a part of the navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(part)


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.M)
    slugs = (re.sub(r"[^\w\- ]", "", title).strip().lower() for title in titles)
    return {re.sub(r"\s", "-", slug) for slug in slugs}


def test_every_page_is_in_the_navigation_once() -> None:
    shown = list(pages_of(SETTINGS["nav"]))
    written = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(shown) == sorted([*written, *site_pages.PAGES.values()])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = FENCED.sub("", (ROOT / page).read_text())
    for match in site_pages.LINK.finditer(text):
        target = ((ROOT / page).parent / match[1]).resolve()
        assert target.exists(), match[0]
        if match[2] and target.suffix == ".md":
            assert match[2].removeprefix("#") in anchors(target.read_text()), match[0]
    own = set(re.findall(r"\]\(#([^)\s]+)\)", text))
    assert own <= anchors((ROOT / page).read_text())


def test_links_are_rewritten_for_the_site() -> None:
    def shown(markdown: str, page: str) -> str:
        return site_pages.rewritten(markdown, page)

    assert shown("[r](../RESULTS.md#generators)", "generators.md") == "[r](results.md#generators)"
    assert shown("[c](../../CONTRIBUTING.md)", "families/mar.md") == "[c](../contributing.md)"
    assert shown("[d](docs/training.md)", "contributing.md") == "[d](training.md)"
    away = f"[e]({site_pages.REPOSITORY}examples/inpaint.py)"
    assert shown("[e](../examples/inpaint.py)", "examples.md") == away
    image = "![s](repository/benchmarks/xeon/strategies.png)"
    assert shown("![s](../benchmarks/xeon/strategies.png)", "decoding.md") == image
    for kept in ("[a](https://arxiv.org)", "[b](#here)", "[c](lost.md)"):
        assert shown(kept, "index.md") == kept


def test_every_image_is_shown_and_explained_in_the_gallery() -> None:
    gallery = (DOCS / "gallery.md").read_text()
    shown = set(re.findall(r"\(images/([\w.]+)\)", gallery))
    assert shown == {path.name for path in (DOCS / "images").iterdir()}


def test_every_family_is_in_the_table() -> None:
    index = (DOCS / "families" / "index.md").read_text()
    written = {path.name for path in (DOCS / "families").glob("*.md")} - {"index.md"}
    assert set(re.findall(r"^\| \[[^]]+\]\((\w+\.md)\)", index, re.M)) == written


@pytest.mark.parametrize("group", ["tokenizer", "generator"])
def test_every_published_preset_is_on_a_page(group: str) -> None:
    from argen.runtime.presets import preset_names

    own = ("tiny_", "small_", "quickstart_", "emoji_")
    text = "\n".join(path.read_text() for path in (DOCS / "families").glob("*.md"))
    patterns = [p.replace("*", r"\w+") for p in re.findall(r"`(\w+\*\w*)`", text)]
    for name in preset_names(group):
        shown = re.search(rf"\b{name}\b", text) or any(re.fullmatch(p, name) for p in patterns)
        assert name.startswith(own) or shown, name


def test_the_site_names_no_asset_from_elsewhere() -> None:
    assert SETTINGS["strict"] is True
    assert SETTINGS["theme"]["font"] is False
    assert not {"extra_css", "extra_javascript", "repo_url"} & set(SETTINGS)


def test_the_reference_names_what_exists() -> None:
    import argen

    for name in re.findall(r"^::: ([\w.]+)$", (DOCS / "reference.md").read_text(), re.M):
        parts = name.split(".")
        if len(parts) == 2 and parts[1] in argen.__all__:
            continue
        module = ROOT.joinpath(*parts)
        if module.with_suffix(".py").is_file() or (module / "__init__.py").is_file():
            continue
        holder = ROOT.joinpath(*parts[:-1])
        file = holder.with_suffix(".py")
        source = (file if file.is_file() else holder / "__init__.py").read_text()
        assert re.search(rf"^(def|class) {parts[-1]}\b", source, re.M), name
