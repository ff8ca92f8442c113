"""What the server of `forked.py` imports before a command forks from it: all that is slow."""

from __future__ import annotations

import lightning  # noqa: F401
import matplotlib.figure  # noqa: F401
import torch  # noqa: F401
import torchmetrics  # noqa: F401
import torchvision  # noqa: F401

from argen.pipeline import Pipeline  # noqa: F401
