"""Fetch files that some metrics need, for those who have a network.

    python tools/fetch_assets.py                    list them: name, licence, place, whether there
    python tools/fetch_assets.py inception vgg16    fetch these
    python tools/fetch_assets.py all --folder DIR   fetch all, elsewhere than ~/.cache/argen

A download is checked by its sha256 before it gets its name.
"""

from __future__ import annotations

import argparse
import os
import sys
import urllib.error
from pathlib import Path

from argen.errors import UserError
from argen.pretrained.assets import Asset, asset, asset_folder, assets


def main(words: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="which; `all` for all")
    parser.add_argument("--folder", type=Path, default=asset_folder(), help="where they go")
    options = parser.parse_args(words)
    try:
        if not options.names:
            for entry in assets().values():
                there = "there" if (options.folder / entry.file).is_file() else "missing"
                print(f"{entry.name:16} {there:8} {options.folder / entry.file}")
                print(f"{'':16} for {entry.purpose}; licence: {entry.licence}; {entry.url}")
            return 0
        wanted = list(assets()) if options.names == ["all"] else options.names
        for entry in [asset(name) for name in wanted]:
            print(f"{entry.name}: {fetch(entry, options.folder)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def fetch(entry: Asset, folder: Path) -> str:
    """Download one file unless it is there; returns a line about it."""
    place = folder / entry.file
    if place.is_file():
        return f"{place} is there, sha256 {entry.check(place)}"
    from torch.hub import download_url_to_file  # with its progress bar

    folder.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        download_url_to_file(entry.url, str(temporary))
        found = entry.check(temporary)
        temporary.replace(place)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise UserError(
            f"{entry.url} cannot be fetched ({error}): download it on a machine with a network and "
            f"put it at {place}."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return f"{place}, sha256 {found}" + ("" if entry.sha256 else " (the publisher states none)")


if __name__ == "__main__":
    sys.exit(main())
