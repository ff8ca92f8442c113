"""Files that metrics need and no package brings: where they lie, how they are checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from argen.errors import CheckpointError, UserError, suggest
from argen.runtime.files import sha256_of

LISTING = Path(__file__).with_name("assets.yaml")


@dataclass(frozen=True)
class Asset:
    """One such file.

    Attributes:
        name: what commands call it.
        file: its file name.
        url: where it is published.
        sha256: of its bytes, or the first digits; empty if its publisher gives none.
        licence: its terms, as far as known.
        purpose: what needs it.
    """

    name: str
    file: str
    url: str
    sha256: str
    licence: str
    purpose: str

    def find(self, path: Path | str | None = None, *, folder: Path | str | None = None) -> Path:
        """Return the file's place, its hash checked.

        Args:
            path: the file itself, wherever it lies.
            folder: where to look for it by name; `asset_folder()` when None.

        Raises:
            UserError: it is not there; the message says how to get it.
            CheckpointError: it is another file.
        """
        place = Path(path) if path else Path(folder or asset_folder()) / self.file
        if not place.is_file():
            raise UserError(
                f"{self.purpose}: needs the file {place}, which is not there. Fetch it with "
                f"`python tools/fetch_assets.py {self.name}`, or download {self.url} and put it "
                "there."
            )
        self.check(place)
        return place

    def check(self, place: Path) -> str:
        """Return the file's sha256; raise `CheckpointError` if it is not the published one."""
        found = sha256_of(place)
        if not found.startswith(self.sha256):
            raise CheckpointError(
                f"{place} has sha256 {found[:16]}..., but {self.file} has {self.sha256}...: "
                f"fetch it again from {self.url}."
            )
        return found


def asset(name: str) -> Asset:
    """Return an asset by name; raise `UserError` with close matches if there is none."""
    known = assets()
    if name not in known:
        raise UserError(
            f"There is no asset {name!r}; there are {', '.join(known)}.{suggest(name, known)}"
        )
    return known[name]


def assets() -> dict[str, Asset]:
    """Return every asset by name."""
    listing: dict[str, dict[str, Any]] = yaml.safe_load(LISTING.read_text(encoding="utf-8"))
    return {
        name: Asset(
            name=name,
            file=entry["file"],
            url=entry["url"],
            sha256=str(entry["sha256"] or ""),
            licence=entry["licence"],
            purpose=entry["for"],
        )
        for name, entry in listing.items()
    }


def asset_folder() -> Path:
    """Return where assets are kept: $ARGEN_ASSETS, or `argen` in the user's cache."""
    if given := os.environ.get("ARGEN_ASSETS"):
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "argen"
