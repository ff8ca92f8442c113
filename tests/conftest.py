"""One thread a test process: tests run side by side, and small models gain nothing from more."""

from __future__ import annotations

import os

# Before torch is imported, and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
