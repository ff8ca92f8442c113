"""Output heads: from hidden vectors to the distribution of one group's codes."""

from argen.generators.heads.base import Head
from argen.generators.heads.categorical import CategoricalHead

__all__ = ["CategoricalHead", "Head"]
