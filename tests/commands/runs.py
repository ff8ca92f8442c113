"""Commands as a user types them, on models that train in seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TINY = [
    "data=digits",
    "data.image_size=16",
    "tokenizer=tiny_vq",
    "generator=tiny_gpt",
    "trainer=cpu",
    "evaluate=null",
    "codes.views=1",
    "samples.per_class=2",
    "fit.val_every=20",
    "fit.save_every=10",
]


def command(name: str, *overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m argen.NAME` in a directory of its own."""
    return subprocess.run(
        [sys.executable, "-m", f"argen.{name}", *overrides],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )
