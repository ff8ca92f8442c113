"""Compare argen with recorded runs of the published implementations.

    python tools/parity.py DIR [DIR ...]

Each fixture is loaded through its importer, its procedure replayed, and every expected tensor
compared. One line a fixture:

    <name> <checked>/<expected> max_err=<float> PASS|FAIL

Exit status 1 if any fixture fails, is not supported, or leaves an expected tensor unchecked; with
`-v` the tensors that differ are named.
"""

from __future__ import annotations

import argparse
import pkgutil
import sys
import traceback
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from replays.fixture import Fixture


@cache
def replays() -> dict[str, Callable[[Fixture], dict[str, Tensor]]]:
    """Return what replays each system: the modules of tools/replays say their `SYSTEMS`."""
    modules = [
        import_module(f"replays.{module.name}")
        for module in pkgutil.iter_modules([str(Path(__file__).resolve().parent / "replays")])
    ]
    return {
        system: module.replay
        for module in modules
        if hasattr(module, "SYSTEMS")
        for system in module.SYSTEMS
    }


def replay_of(system: str) -> Callable[[Fixture], dict[str, Tensor]]:
    """Return what replays the fixtures of a system."""
    if system not in replays():
        raise LookupError(f"system {system!r} is not supported")
    return replays()[system]


def compare(expected: Tensor, found: Tensor, atol: float, rtol: float) -> tuple[float, bool]:
    """Return the largest absolute difference and whether all elements are within tolerance."""
    if expected.numel() != found.numel() or expected.squeeze().shape != found.squeeze().shape:
        return float("inf"), False
    a, b = expected.double().reshape(-1), found.detach().double().reshape(-1)
    if a.numel() == 0:
        return 0.0, True
    # Integers (codes, counts) must agree exactly.
    if not expected.is_floating_point():
        atol = rtol = 0.0
    same = (a == b) | (a.isnan() & b.isnan())
    error = torch.where(same, 0.0, (a - b).abs())
    within = same | (error <= atol + rtol * a.abs())
    return float(error.nan_to_num(nan=float("inf")).max()), bool(within.all())


def check(directory: Path, *, verbose: bool = False) -> bool:
    """Replay one fixture and print its line."""
    checked, total, worst, notes = 0, 0, 0.0, []
    try:
        fixture = Fixture(directory)
        total = len(fixture.expected)
        found = replay_of(fixture.system)(fixture)
        atol, rtol = fixture.tolerance
        ok = total > 0
        for name in fixture.expected:
            if name not in found:
                ok = False
                notes.append(f"{name}: not computed")
                continue
            checked += 1
            error, within = compare(fixture[name], found[name], atol, rtol)
            worst = max(worst, error)
            if not within:
                ok = False
                notes.append(
                    f"{name}: off by {error:.3g} "
                    f"(expected {tuple(fixture[name].shape)}, found {tuple(found[name].shape)})"
                )
    except Exception as error:
        ok = False
        notes.append(f"{type(error).__name__}: {error}")
        if verbose:
            traceback.print_exc()
    print(
        f"{directory.resolve().name} {checked}/{total} max_err={worst:.3g} "
        f"{'PASS' if ok else 'FAIL'}"
    )
    if notes and (verbose or total == 0 or checked == 0):
        print("\n".join(f"    {note}" for note in notes), file=sys.stderr)
    return ok


def main() -> int:
    """Check every directory given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("-v", "--verbose", action="store_true", help="name tensors that differ")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    results = [check(d, verbose=arguments.verbose) for d in arguments.directories]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
