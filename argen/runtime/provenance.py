"""What a result was made with: versions, and the commit of the checkout that argen runs from."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from argen import __version__

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "torch-fidelity")


def provenance() -> dict[str, Any]:
    """Return versions, and the commit of the checkout that argen runs from (None elsewhere)."""
    versions = {"argen": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "commit": _commit()}


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    # An installed copy may lie in somebody else's checkout: its commit would be the wrong one.
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
