"""xAR: next-X prediction by flow matching (arXiv 2502.20388)."""

from argen.generators.xar.xar import XAR

__all__ = ["XAR"]
