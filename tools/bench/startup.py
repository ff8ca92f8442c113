"""CPU seconds until the commands' help is printed, and of importing argen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from argen.errors import UserError
from bench.cases import Case

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import argen": ["-c", "import argen"],
    "argen.train --help": ["-m", "argen.train", "--help"],
    "argen.sample --help": ["-m", "argen.sample", "--help"],
    "argen.evaluate --help": ["-m", "argen.evaluate", "--help"],
    "argen.tokenize --help": ["-m", "argen.tokenize", "--help"],
    "import torch": ["-c", "import torch"],
}


def groups(settings: Mapping[str, Any]) -> Iterator[list[Case]]:
    """Yield one group: every command in a fresh interpreter, timed by its own CPU seconds."""
    names = settings["commands"] or list(COMMANDS)
    for name in names:
        if name not in COMMANDS:
            raise UserError(f"There is no command {name!r}; choose from {', '.join(COMMANDS)}.")
    yield [
        Case(
            {"command": name},
            call=partial(_cpu_seconds, COMMANDS[name]),
            unit="starts",
            seconds=float,
        )
        for name in names
    ]


def _cpu_seconds(arguments: list[str]) -> float:
    """Run an interpreter to its end and return the CPU seconds it took."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments} ended with status {process.returncode}")
    return usage.ru_utime + usage.ru_stime
