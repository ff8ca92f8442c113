"""Write constraints.txt: the versions, of all that argen needs, that this environment has.

    python tools/lock.py [--check]

Run it in an environment whose tests pass, then commit the file. `--check` writes nothing and
exits 1 if the file is not what this environment would give. Packages that hold nothing but CUDA
libraries are left out: torch itself pins the ones it needs, and a CPU build needs none.
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

PATH = Path(__file__).resolve().parents[1] / "constraints.txt"
CUDA_ONLY = re.compile(r"nvidia-.*|cuda-.*|triton.*|pytorch-triton.*")
HEADER = """\
# Versions that argen's tests pass with: pip install -c constraints.txt ".[dev]"
# Made with Python {python} by tools/lock.py; older Pythons may need older versions.
# To renew: in a fresh environment `pip install -e ".[dev]" && pytest && python tools/lock.py`.
"""


def plain(name: str) -> str:
    """Return a name as package registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(package: str, extras: tuple[str, ...] = ()) -> dict[str, str]:
    """Return name and version of all that a package needs, as far as it is installed."""
    found: dict[str, str] = {}
    queue = [(package, extras)]
    seen = set()
    while queue:
        name, wanted = queue.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        # Builds of one version differ after the plus sign, e.g. 2.6.0+cpu.
        found[plain(name)] = distribution.version.partition("+")[0]
        for line in distribution.requires or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in ("", *wanted)):
                queue.append((requirement.name, tuple(sorted(requirement.extras))))
    del found[plain(package)]
    return {name: v for name, v in found.items() if not CUDA_ONLY.fullmatch(name)}


def main() -> int:
    """Write or check the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    versions = installed("argen", ("dev",))
    text = HEADER.format(python=f"{sys.version_info.major}.{sys.version_info.minor}")
    text += "".join(f"{name}=={versions[name]}\n" for name in sorted(versions))
    if arguments.check:
        same = PATH.is_file() and PATH.read_text() == text
        print(f"{PATH.name} is {'up to date' if same else 'not what this environment has'}")
        return 0 if same else 1
    PATH.write_text(text)
    print(f"{PATH.name}: {len(versions)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
