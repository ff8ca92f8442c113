"""argen: autoregressive image generation, one contract for tokenizers, generators and decoders.

Importing this package is cheap: torch and everything built on it load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["CodeSpec", "Pipeline", "Segment", "__version__", "load"]

if TYPE_CHECKING:
    from argen.pipeline import Pipeline, load
    from argen.spec import CodeSpec, Segment

_LAZY = {
    "Pipeline": "argen.pipeline",
    "load": "argen.pipeline",
    "CodeSpec": "argen.spec",
    "Segment": "argen.spec",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'argen' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
