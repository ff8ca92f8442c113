"""MAR: masked autoregression over continuous codes (arXiv 2406.11838)."""

from argen.generators.mar.mar import MAR

__all__ = ["MAR"]
