"""How fast argen is, with the bound of the machine beside it.

    python tools/bench.py                        the subjects
    python tools/bench.py startup                measure one, a table and a JSON (and a plot)
    python tools/bench.py sample rounds=3 against=outputs/bench/sample-before.json
    python tools/bench.py sample --help          its settings

A subject is a module under tools/bench/ with `groups(settings)`, which yields lists of `Case`, and
a YAML of its settings beside it. The cases of a list take turns; lists run one after another.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "bench"
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "benchmarks")]


def subjects() -> list[str]:
    """Return the names of all subjects."""
    return sorted(path.stem for path in HERE.glob("*.yaml") if path.stem != "common")


def measure_subject(subject: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Measure a subject and return the result file's contents."""
    import torch
    from bench.cases import measure
    from bench.machine import bound, ceilings, machine
    from bench.profile import profile_of

    from argen.runtime.device import pick_device
    from argen.runtime.provenance import provenance

    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    device = pick_device(settings["device"])
    facts, found = machine(device), ceilings(device)
    rows = []
    for group in import_module(f"bench.{subject}").groups(settings):
        for row in measure(group, rounds=settings["rounds"], device=device):
            rows.append(row.to_dict())
            rows[-1]["bound_seconds"] = bound(rows[-1], found)
            if settings["profile"]:
                rows[-1]["profile"] = profile_of(row.case.call, device)
            print(f"  {dict(row.case.labels)}: {row.median:.4g} s", file=sys.stderr, flush=True)
        del group
    return {
        "subject": subject,
        "command": " ".join(["python tools/bench.py", subject, *sys.argv[1:]]),
        "settings": dict(settings),
        "machine": facts,
        "ceilings": found,
        "rows": rows,
        **provenance(),
    }


def main() -> None:
    """Compose the subject's settings with the command line and measure."""
    from argen.errors import UserError, suggest
    from argen.runtime.command import run, show

    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in subjects():
        print(__doc__ or "")
        show("Subjects: " + ", ".join(subjects()))
        if name and not name.startswith("-"):
            show(f"error: there is no subject {name!r}.{suggest(name, subjects())}")
        sys.exit(0 if name in ("", "-h", "--help") else 2)

    def measured(config: Any) -> None:
        from bench.plot import save_plot
        from bench.table import about, markdown, profiles

        from argen.runtime.command import plain
        from argen.runtime.files import write_json

        settings = plain(config)
        before = None
        if settings["against"]:
            path = Path(settings["against"])
            if not path.is_file():
                raise UserError(f"against={path} is not there; name the JSON of an earlier run.")
            before = json.loads(path.read_text())
        result = measure_subject(name, settings)
        out = Path(settings["out"] or f"outputs/bench/{name}.json")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
        show(f"{about(result)}\n")
        show(markdown(result, before))
        if settings["profile"]:
            show(profiles(result))
        if settings["plot"]:
            save_plot(result, out.with_suffix(".png"))
        show(f"\n{out}")

    rest = sys.argv[2:]
    sys.argv = [sys.argv[0], *rest]
    run(measured, name, directory=HERE)


if __name__ == "__main__":
    main()
