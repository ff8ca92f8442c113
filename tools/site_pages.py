"""Hook of mkdocs: pages and images that live outside docs/, and links between the two.

Files such as CONTRIBUTING.md stay where GitHub shows them and become pages of the site as they are.
Links of every page are written for the repository; a link to a file that is a page becomes a link
to that page, an image outside docs/ is copied, and any other file is linked in the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/argen-project/argen/blob/main/"

# Files of the repository and the pages that they become.
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "RESULTS.md": "results.md",
    "benchmarks/README.md": "benchmarks.md",
    "SECURITY.md": "security.md",
}
SHOWN_AS = {**PAGES, "README.md": "index.md"}
SOURCES = {page: source for source, page in PAGES.items()}
IMAGES = (".png", ".gif", ".svg", ".webp")
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def links(markdown: str) -> list[str]:
    """Return the targets of relative links and images, without their anchors."""
    return [match[1] for match in LINK.finditer(markdown)]


def source_of(page: str) -> str:
    """Return the path in the repository of a page of the site."""
    return SOURCES.get(page, f"docs/{page}")


def rewritten(markdown: str, page: str) -> str:
    """Return a page's text with links that hold on the site instead of in the repository."""
    folder = posixpath.dirname(source_of(page))
    here = posixpath.dirname(page) or "."

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        anchor = match[2] or ""
        if not (ROOT / target).exists():
            return match[0]  # left for mkdocs to warn of
        shown = SHOWN_AS.get(target)
        if shown is None and target.startswith("docs/"):
            shown = target.removeprefix("docs/")
        if shown is None and target.endswith(IMAGES):
            shown = f"repository/{target}"
        if shown is None:
            return f"]({REPOSITORY}{target}{anchor})"
        return f"]({posixpath.relpath(shown, here)}{anchor})"

    return LINK.sub(link, markdown)


def on_files(files: Any, config: Any) -> Any:
    """Add what lives outside docs/: the pages, and the images that pages show."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    wanted = set()
    for file in files.documentation_pages():
        folder = posixpath.dirname(source_of(file.src_uri))
        for target in links(Path(file.abs_src_path).read_text(encoding="utf-8")):
            path = posixpath.normpath(posixpath.join(folder, target))
            if path.endswith(IMAGES) and not path.startswith("docs/") and (ROOT / path).is_file():
                wanted.add(path)
    for path in sorted(wanted):
        image = File.generated(config, f"repository/{path}", abs_src_path=str(ROOT / path))
        files.append(image)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of a page."""
    return rewritten(markdown, page.file.src_uri)
